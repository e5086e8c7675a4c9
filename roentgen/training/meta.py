"""One training step on PyTorch's meta device: what would be alive, without computing a value."""

from __future__ import annotations

import copy
import weakref
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter, tree_map

from roentgen.models.autoencoder.latents import downsampling

# What autocast does on CUDA (PyTorch's documentation, "Autocast Op Reference"), for the operations of these models.
LOWERED = {F.linear, F.conv2d, torch.conv2d, torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, torch.baddbmm}
RAISED = {F.group_norm, F.layer_norm, F.softmax, torch.softmax, Tensor.softmax, torch.group_norm, torch.layer_norm}


class PeakMemory(TorchDispatchMode):
    """Count the bytes of every buffer made inside, and the most that were alive at once (``peak``).

    Works on any device, meta included. What was made outside does not count.
    """

    def __init__(self) -> None:
        super().__init__()
        self.alive = 0
        self.peak = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # Whatever goes in and is not known was made outside (parameters, inputs).
        inside = {id(x.untyped_storage()) for x in tree_iter((args, kwargs)) if isinstance(x, Tensor)}
        result = func(*args, **(kwargs or {}))
        for value in tree_iter(result):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                if id(storage) not in inside and storage not in self._known:
                    self._known.add(storage)
                    size = storage.nbytes()
                    self.alive += size
                    weakref.finalize(storage, self._free, size)
        self.peak = max(self.peak, self.alive)
        return result

    def _free(self, size: int) -> None:
        self.alive -= size


class Autocast(TorchFunctionMode):
    """CUDA's autocast by hand: the meta device has none, and the CPU's keeps other operations in float32.

    Casts of parameters are kept until the mode ends, as autocast keeps them. Attention is the fused kernel.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype
        self._casts: dict[int, Tensor] = {}

    def __exit__(self, *exception: Any) -> None:
        self._casts.clear()
        super().__exit__(*exception)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attention(*args, **kwargs)
        if self.dtype != torch.float32:
            if func in LOWERED:
                args, kwargs = tree_map(lambda x: self._cast(x, self.dtype), (args, kwargs))
            elif func in RAISED:
                args, kwargs = tree_map(lambda x: self._cast(x, torch.float32), (args, kwargs))
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == dtype:
            return value
        if isinstance(value, nn.Parameter) and dtype != torch.float32:
            if id(value) not in self._casts:
                self._casts[id(value)] = value.to(dtype)
            return self._casts[id(value)]
        return value.to(dtype)

    def _attention(
        self, query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, *_: Any, **__: Any
    ) -> Tensor:
        # The meta device would take the unfused form, which keeps every probability.
        query, key, value = (self._cast(x, self.dtype) for x in (query, key, value))
        # Only its size matters: values are never looked at.
        bias = None if attn_mask is None else attn_mask.to(query.dtype).expand(*query.shape[:3], key.shape[2])
        out: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, bias, True)[0]
        return out


def training_peak(
    net: nn.Module,
    encoder: nn.Module | None,
    decoder: Any,
    *,
    batch: int,
    shapes: tuple[tuple[int, int, int], tuple[int, int, int]],
    dtype: torch.dtype,
    with_gradients: bool,
) -> int:
    """Bytes alive at the worst moment of one forward and backward pass, gradients included.

    ``shapes``: channels, height and width of the latents; chunks of a text, tokens of a chunk, width
    of the states.
    """
    latent_shape, (chunks, tokens, width) = shapes
    learns_text = encoder is not None and any(p.requires_grad for p in encoder.parameters())
    with PeakMemory() as tracker, torch.device("meta"):
        if with_gradients:  # those of an earlier part of the batch
            for module in filter(None, (net, encoder, decoder)):
                for p in module.parameters():
                    p.grad = torch.zeros_like(p) if p.requires_grad else None
        latents = torch.zeros(batch, *latent_shape)
        steps = torch.zeros(batch, dtype=torch.long)
        with Autocast(dtype):
            if encoder is None:
                states = torch.zeros(batch, chunks * tokens, width, dtype=dtype)
            else:
                ids = torch.zeros(batch * chunks, tokens, dtype=torch.long)
                with nullcontext() if learns_text else torch.no_grad():
                    states = encoder(ids).last_hidden_state.reshape(batch, chunks * tokens, width)
            loss = (net(latents, steps, states).sample.float() - latents).square().mean()
            if decoder is not None:
                loss = loss + decoder.decode(latents).sample.float().abs().mean()
        loss.backward()
        for module in filter(None, (net, encoder, decoder)):
            module.zero_grad(set_to_none=True)
    return tracker.peak


def encoding_peak(vae: Any, batch: int, latent_shape: tuple[int, int, int], dtype: torch.dtype) -> int:
    """Bytes alive at the worst moment of encoding a batch of images."""
    factor = downsampling(vae)
    shape = (batch, vae.config.in_channels, latent_shape[1] * factor, latent_shape[2] * factor)
    with PeakMemory() as tracker, torch.no_grad(), Autocast(dtype), torch.device("meta"):
        vae.encode(torch.zeros(shape))
    return tracker.peak


def meta_copy(module: nn.Module, train: bool | None) -> Any:
    """A copy of ``module`` on the meta device, without copying a weight; ``train`` sets what requires gradients."""
    memo: dict[int, Any] = {}
    for p in module.parameters():
        wanted = p.requires_grad if train is None else train
        memo[id(p)] = nn.Parameter(torch.empty_like(p, device="meta"), requires_grad=wanted)
    for b in module.buffers():
        memo[id(b)] = torch.empty_like(b, device="meta")
    return copy.deepcopy(module, memo)
