"""A layer whose scale is a buffer: what the layers share.

Imports schedules and checks, and transforms to refuse a script.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .checks import check_number, check_scale
from .schedules import Schedule, uncompiled

_PLAIN_TYPES = (Tensor, nn.Parameter)


def _checked(value: object) -> tuple[float, Tensor | None]:
    """As `check_scale`, and ValueError for a tensor of NaN where reading it waits for nothing.

    One on the meta device would be NaN as soon as it has a value.
    """
    number, tensor = check_scale(value)
    if tensor is None or torch.compiler.is_compiling() or type(tensor) not in _PLAIN_TYPES:
        return number, tensor
    if tensor.is_meta:
        raise ValueError(
            "scale is a tensor on the meta device, where it has no value: give a number, which a "
            "layer made there keeps"
        )
    if tensor.is_cpu and not torch._C._functorch.is_functorch_wrapped_tensor(tensor):
        check_number("scale", tensor.item())
    return number, tensor


class Scaled(nn.Module):
    """A module whose scale may be a 0-dim float64 buffer, set only through `set_scale`.

    The buffer keeps its dtype through `.half()`, `.to(dtype)` and their like, and its value through
    `to_empty`. A value written here is mirrored in Python, so that reading it back never waits for
    a device.
    """

    if TYPE_CHECKING:
        # It is a buffer: read as a tensor, and set by a number too.
        @property
        def scale(self) -> Tensor | None: ...

        @scale.setter
        def scale(self, value: float | Tensor) -> None: ...

    def _register_scale(self, value: float | Tensor) -> None:
        number, tensor = _checked(value)
        if tensor is None:
            buffer = torch.tensor(number, dtype=torch.float64)
        else:
            buffer = tensor.detach().to(dtype=torch.float64, copy=True)
        self.register_buffer("scale", buffer)
        self._know(number if tensor is None else None)

    def _know(self, value: float | None) -> None:
        """Mirror the buffer's value, as long as nobody else writes into it."""
        # A graph cannot ask for a version, and each new value known would be a new graph.
        compiles = torch.compiler.is_compiling()
        self._known: float | None = None if compiles else value
        self._written = None if compiles else self._version_of(self.scale)

    @staticmethod
    def _version_of(scale: Tensor | None) -> tuple[int, int] | None:
        """What changes with another buffer and every write; None where writes cannot be seen."""
        # Another process writes into shared memory unseen, and inference tensors do not count.
        unseen = scale is None or scale.is_inference() or (scale.is_cpu and scale.is_shared())
        return None if unseen else (id(scale), scale._version)  # type: ignore[union-attr]

    def _still_known(self) -> float | None:
        """The buffer's value, if it is known and nobody else has written since."""
        version = self._version_of(self.scale)
        return self._known if version is not None and version == self._written else None

    def set_scale(self, value: float | Tensor) -> None:
        """Write `value`, a number or a 0-dim tensor, into the buffer, in place and without a sync.

        Raises
        ------
        TypeError, ValueError
            Not a number nor a 0-dim floating tensor, one that requires grad or is on the meta
            device, or NaN (of a tensor, where it is the CPU's, which reads it without waiting, and
            no compiler traces).
        """
        if self.scale is None:
            raise ValueError(
                "this layer's rule has a number for a scale; give the rule a 0-dim tensor to make "
                "it live, or set layer.rule"
            )
        # In a graph a number is a constant, and a tensor an input.
        (self._write if isinstance(value, Tensor) else self._write_uncompiled)(value)

    def _write(self, value: float | Tensor) -> None:
        assert self.scale is not None
        number, tensor = _checked(value)
        # Through a view: torch.compile loses a write into a 0-dim float64 CPU tensor itself.
        scale = self.scale.detach()
        scale.fill_(number) if tensor is None else scale.copy_(tensor)
        self._know(number if tensor is None else None)

    _write_uncompiled = uncompiled(_write)

    def reset_parameters(self) -> None:
        """What FSDP calls of every layer after `to_empty`; λ, which survives that, stays."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "scale" and "scale" in self.__dict__.get("_buffers", {}):
            if isinstance(value, Schedule):
                raise TypeError(f"{type(self).__name__} takes no schedule; GradientReversal does")
            self.set_scale(value)
        else:
            super().__setattr__(name, value)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        before, self._buffers["scale"] = self._buffers["scale"], None
        try:
            super()._apply(fn, recurse)
        finally:
            self._buffers["scale"] = before
        if before is not None:
            # Only the place of a probe counts: the buffer's dtype and value are not fn's to change.
            probe = fn(torch.zeros((), device=before.device))
            self._known = self._known if before.is_meta else self._still_known()
            self._buffers["scale"] = self._moved(before, probe)
            self._written = self._version_of(self._buffers["scale"])
        return self

    def _moved(self, before: Tensor, probe: Tensor) -> Tensor:
        if probe.device == before.device:
            return before.share_memory_() if probe.is_shared() and not before.is_cuda else before
        dtype = torch.float32 if probe.device.type == "mps" else torch.float64
        if probe.is_meta:
            self._known = before.item()
        if not before.is_meta:
            return before.to(device=probe.device, dtype=dtype)
        known = float("nan") if self._known is None else self._known
        return torch.full((), known, dtype=dtype, device=probe.device)

    def __prepare_scriptable__(self) -> Any:
        """What torch.jit.script asks first, of every module inside as well."""
        from .transforms import TracingError

        raise TracingError(
            f"torch.jit.script cannot record the backward of {type(self).__name__}; for inference, "
            "torch.jit.trace or torch.export takes it under torch.no_grad()"
        )

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *rest: Any) -> None:
        saved = state.get(prefix + "scale")
        # A fake tensor's value cannot be asked for.
        real = type(saved) in (Tensor, nn.Parameter) and not saved.is_meta
        errors = rest[-1]
        if real and saved.isnan().any():
            # As `set_scale` refuses it; PyTorch raises with the errors of all modules.
            errors.append(f"{prefix}scale is NaN, which is no λ; this layer is left as it was")
            return
        before = len(errors)
        super()._load_from_state_dict(state, prefix, metadata, *rest)
        if saved is None or self.scale is None:
            return
        if metadata.get("assign_to_params_buffers", False) and len(errors) == before:
            # Of shape (1,), as PyTorch takes it from old files, or ().
            made = saved.detach().to(dtype=torch.float64, copy=True)
            self._buffers["scale"] = made.reshape(())
        self._known = None
