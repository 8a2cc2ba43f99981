"""Causal convolutions over positions, short and as long as the input."""

import torch
from torch import Tensor


def causal_convolution(inputs: Tensor, kernel: Tensor) -> Tensor:
    """y_t = sum_{s <= t} kernel_{t-s} inputs_s by a Fourier transform of length 2 L.

    Args:
        inputs: [B, L, ...].
        kernel: [K, ...] with K >= L, of which the first L entries are used; broadcasts with the inputs.

    Returns:
        [B, L, ...].

    Raises:
        ValueError: the kernel is shorter than the inputs.
    """
    length = inputs.shape[1]
    check_length(length, len(kernel))
    exact = torch.promote_types(inputs.dtype, torch.float32)  # no Fourier transform of half precision on a CPU
    # Contiguous positions make the transforms up to twice as fast.
    spectrum = torch.fft.rfft(inputs.to(exact).movedim(1, -1).contiguous(), n=2 * length)
    response = torch.fft.rfft(kernel[:length].to(exact).movedim(0, -1).contiguous(), n=2 * length)
    convolved = torch.fft.irfft(spectrum * response, n=2 * length)[..., :length]
    return convolved.movedim(-1, 1).to(inputs.dtype)


def last_convolved(past: Tensor, kernel: Tensor) -> Tensor:
    """The last position of `causal_convolution`: inputs [B, t, d] and kernel [K, d] with K >= t -> [B, d]."""
    check_length(past.shape[1], len(kernel))
    return torch.einsum("btd,td->bd", past, kernel[: past.shape[1]].flip(0))


def check_length(positions: int, longest: int) -> None:
    """ValueError if an input has more positions than a filter."""
    if positions > longest:
        raise ValueError(f"the input has {positions} positions, the filter only {longest}: build the mixer for longer")


def position_features(length: int) -> Tensor:
    """What an implicit filter is a function of, [length, 3].

    z_t = (t / (length - 1), cos w_t, -sin w_t) with w_t = 1e-4 2 pi t / length: the slow wave leaves time alone as
    input (Poli et al., "Hyena hierarchy" (2023), section 3.3, with one frequency).
    """
    angle = 1e-4 * 2 * torch.pi * torch.arange(length) / length
    return torch.stack([torch.linspace(0, 1, length), angle.cos(), -angle.sin()], -1)
