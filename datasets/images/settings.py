"""What the dataset YAML of images may say beside `dataset` and `tasks`."""

from collections.abc import Mapping
from dataclasses import dataclass

from datasets.config import SEED, WRITTEN
from utils.errors import UserError, unknown
from utils.settings import PerChannel, Range, read, setting

FIXED = "fixed"
SPAN = 180.0


_MEAN, _SD = PerChannel(Range(0, 1, whole=False)), PerChannel(Range(0.001, 1, whole=False))


@dataclass(frozen=True)
class Normalisation:
    """Pixel values x, from 0 to 1, become (x - mean) / sd."""

    mean: tuple[float, ...] = setting(_MEAN, "mean of x")
    sd: tuple[float, ...] = setting(_SD, "standard deviation of x")


HALF = Normalisation((0.5,), (0.25,))
NORMALISATIONS = {
    # Not of the data: statistics of later tasks would leak into the first.
    "half": HALF,
    "unit": Normalisation((0.0,), (1.0,)),
    # Means and standard deviations of the training images, as in the examples of PyTorch (MNIST), in Mammoth (CIFAR;
    # Buzzega et al. 2020) and in torchvision (ImageNet).
    "mnist": Normalisation((0.1307,), (0.3081,)),
    "cifar10": Normalisation((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2615)),
    "cifar100": Normalisation((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
    "imagenet": Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


class NormalisationSetting:
    """One of NORMALISATIONS by its name, or a mapping of `mean` and `sd`."""

    kind = str

    @staticmethod
    def read(where: str, value: object) -> str | Normalisation:
        """The checked value; a UserError begins with `where`."""
        if isinstance(value, Mapping):
            return read(Normalisation, where, value)
        if not isinstance(value, str) or value not in NORMALISATIONS:
            raise UserError(f"{where}: {unknown('normalisation', value, NORMALISATIONS)}; or give mean and sd")
        return value


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """Keys for every data set of images."""

    normalize: str | Normalisation = setting(
        NormalisationSetting, "normalisation of the pixels: its name, or mean and sd", default="half"
    )
    pad: int = setting(Range(0, 512), "black pixels that are put on every side of an image", default=0)
    samples_per_task: int | None = setting(Range(1), "use up to N random training examples of each task", default=None)

    @property
    def normalisation(self) -> Normalisation:
        """The numbers of `normalize`."""
        return NORMALISATIONS[self.normalize] if isinstance(self.normalize, str) else self.normalize

    def check_channels(self, where: str, channels: int) -> None:
        """UserError, which begins with `where`, if the normalisation is not for images of so many channels."""
        for part, values in vars(self.normalisation).items():
            if len(values) not in (1, channels):
                what = self.normalize if isinstance(self.normalize, str) else part
                raise UserError(f"{where}: normalize: {what} is for {len(values)} channels; the images have {channels}")


@dataclass(frozen=True, kw_only=True)
class ClassSettings(ImageSettings):
    """Keys where tasks are sets of classes."""

    class_order: str = setting(
        (WRITTEN, SEED), "which class stands where in `tasks`: as written, or drawn", default=WRITTEN
    )


@dataclass(frozen=True, kw_only=True)
class ViewSettings(ImageSettings):
    """Keys where tasks are views of all classes."""

    views: str = setting((FIXED, SEED), "the views: the same in every run, or drawn", default=FIXED)


@dataclass(frozen=True, kw_only=True)
class RotationSettings(ViewSettings):
    """Keys where the views are rotations."""

    span: float | None = setting(
        Range(0, 360, whole=False, open_low=True), f"degrees that drawn rotations share ({SPAN:g})", default=None
    )
