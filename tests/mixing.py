"""What every sequence mixer must do, as checks for the tests of each."""

import torch

from net.sequences.mixers import MIXERS
from utils.seeding import seeded
from utils.settings import read


def mixer_of(name, width=8, length=24, dtype=torch.float64, **settings):
    """A mixer with drawn weights, in test mode."""
    kind = MIXERS[name]
    with seeded(0, "mixer", name):
        mixer = kind(width, length, read(kind.Settings, name, {"mixer": name, **settings}))
    return mixer.to(dtype).eval()


def inputs_of(mixer, batch=3, length=24, dtype=torch.float64):
    return torch.randn(batch, length, mixer.width, dtype=dtype, generator=torch.Generator().manual_seed(1))


def stepped(mixer, inputs):
    """The outputs of the step form."""
    state, found = mixer.begin(len(inputs)), []
    for position in inputs.unbind(1):
        output, state = mixer.step(position, state)
        found.append(output)
    return torch.stack(found, 1)


def check_causal(mixer, exact=True):
    """Outputs before an edited position stay as they are, exactly or up to the rounding of a Fourier transform."""
    mixer = mixer.float()
    inputs = inputs_of(mixer, dtype=torch.float32)
    changed = inputs.clone()
    changed[:, 15:] = torch.randn(changed[:, 15:].shape, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        before, after = mixer(inputs), mixer(changed)
    difference = (before - after)[:, :15].abs().max()
    assert difference == 0 if exact else difference < 1e-4
    assert (before - after)[:, 15:].abs().max() > 1e-3


def check_forms_agree(mixer):
    """The parallel form computes what the step form does; also for shorter inputs than the longest."""
    for length in (24, 7, 1):
        inputs = inputs_of(mixer, length=length)
        with torch.no_grad():
            assert (mixer(inputs) - stepped(mixer, inputs)).abs().max() < 1e-10


def check_gradients(name, **settings):
    """The gradients of inputs and parameters are those of finite differences."""
    mixer = mixer_of(name, width=4, length=6, **settings)
    names = [key for key, value in mixer.named_parameters() if value.requires_grad]
    values = [value.detach().clone().requires_grad_() for key, value in mixer.named_parameters() if key in names]

    def outputs(inputs, *parameters):
        return torch.func.functional_call(mixer, dict(zip(names, parameters, strict=True)), (inputs,))

    inputs = inputs_of(mixer, batch=2, length=6).requires_grad_()
    assert torch.autograd.gradcheck(outputs, (inputs, *values), atol=1e-6)
