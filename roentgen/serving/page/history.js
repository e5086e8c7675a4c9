// What was made before, in this browser's own store (IndexedDB): it survives a reload and never leaves the browser.
//
// A record is a group of images: {id, prompts, about, count, images: [{event, prompt, place, picture}]}, where picture is
// the PNG file as a Blob, or null where there was no room for it.

const MOST_BYTES = 200e6; // of pictures; beyond, the oldest records lose theirs
const STORE = "groups";

let opened = null;

function settled(request) {
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

function open() {
  opened ??= (async () => {
    const request = indexedDB.open("roentgen", 1);
    request.onupgradeneeded = () => request.result.createObjectStore(STORE, { keyPath: "id", autoIncrement: true });
    return settled(request);
  })();
  return opened;
}

// Does work(store) in one transaction; what it returns once that is on disk. Rejects where the store has no room.
async function change(mode, work) {
  const transaction = (await open()).transaction(STORE, mode);
  const done = new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });
  const [result] = await Promise.all([settled(work(transaction.objectStore(STORE))), done]);
  return result;
}

// All records, the oldest first.
export const all = () => change("readonly", (store) => store.getAll());
export const forget = (id) => change("readwrite", (store) => store.delete(id));
export const clear = () => change("readwrite", (store) => store.clear());

const bytesOf = ({ images }) => images.reduce((sum, { picture }) => sum + (picture?.size ?? 0), 0);
const bare = (record) => ({ ...record, images: record.images.map((image) => ({ ...image, picture: null })) });

// Keeps a record, new or changed, and sets its id. Where there is no room, the oldest pictures go, at last its own.
export async function keep(record, most = MOST_BYTES) {
  const others = (await all()).filter(({ id }) => id !== record.id);
  let total = bytesOf(record) + others.reduce((sum, one) => sum + bytesOf(one), 0);
  let stored = record;
  for (;;) {
    try {
      if (total > most) throw new DOMException("too many pictures", "QuotaExceededError");
      record.id = await change("readwrite", (store) => store.put(stored));
      return;
    } catch (error) {
      if (error?.name !== "QuotaExceededError" || !bytesOf(stored)) throw error;
      const oldest = others.find(bytesOf);
      if (oldest) {
        others[others.indexOf(oldest)] = bare(oldest);
        total -= bytesOf(oldest);
        await change("readwrite", (store) => store.put(bare(oldest)));
      } else {
        stored = bare(record);
        total = 0;
      }
    }
  }
}
