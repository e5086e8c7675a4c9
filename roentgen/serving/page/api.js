// Calls to the server: JSON, server-sent events, and the sentence of an error.

export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

export function key() {
  return sessionStorage.getItem("key") || "";
}

export function setKey(value) {
  if (value) sessionStorage.setItem("key", value);
  else sessionStorage.removeItem("key");
}

export async function call(path, options = {}) {
  const headers = new Headers(options.headers);
  if (key()) headers.set("Authorization", `Bearer ${key()}`);
  let reply;
  try {
    reply = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused(0, "The server does not answer; is it still running?");
  }
  if (!reply.ok) {
    let message = `The server answered ${reply.status}.`;
    try {
      message = (await reply.json()).error.message;
    } catch { /* no JSON: the number has to do */ }
    throw new Refused(reply.status, message);
  }
  return reply;
}

// Generates, or edits where the body is a form; calls on(event) for each server-sent event, until the stream ends.
export async function stream(body, on, signal) {
  const how = { stream: true, progress: true, response_format: "url" };
  let [path, content, headers] = ["/v1/images/edits", body, {}];
  if (body instanceof FormData) {
    for (const [name, value] of Object.entries(how)) body.set(name, value);
  } else {
    path = "/v1/images/generations";
    content = JSON.stringify({ ...body, ...how });
    headers = { "Content-Type": "application/json" };
  }
  const reply = await call(path, { method: "POST", headers, body: content, signal });
  const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
  let text = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    text += value;
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const line = text.slice(0, end).split("\n").find((one) => one.startsWith("data: "));
      text = text.slice(end + 2);
      if (!line || line === "data: [DONE]") continue;
      const event = JSON.parse(line.slice(6));
      if (event.type === "error") throw new Refused(503, event.error.message);
      on(event);
    }
  }
}

// Where an image lies on this server, with another ending if asked for.
export function place(url, ending = "png") {
  return new URL(url).pathname.replace(/\.\w+$/, `.${ending}`);
}
