"""The small conv net and its data as usually written, with torch, torchvision and Pillow only."""

import torch
from PIL import Image
from torch import Tensor, nn

DROPOUT = 0.2


class Plain(nn.Module):
    """The conv net with ReLU before pooling, biases everywhere and a loop over a list of heads.

    The images have the shape [C, H, W]; `heads` are the widths of the heads of tasks 1, 2, ...
    """

    def __init__(self, shape: tuple[int, int, int], heads: list[int]) -> None:
        super().__init__()
        padding = int(shape[1] < 22)
        blocks: list[nn.Module] = []
        channels = shape[0]
        for block in range(3):
            blocks += [nn.Conv2d(channels, 80, 3, padding=padding), *([nn.BatchNorm2d(80)] if block else [])]
            blocks += [nn.ReLU(), nn.MaxPool2d(2)]
            channels = 80
        self.trunk = nn.Sequential(*blocks, nn.Flatten(), nn.Dropout(DROPOUT))
        features = self.trunk(torch.zeros(2, *shape)).shape[1]
        self.heads = nn.ModuleList(nn.Linear(features, width) for width in heads)
        self.widest = max(heads)

    def forward(self, images: Tensor, task_ids: Tensor) -> Tensor:
        features = self.trunk(images)
        outputs = features.new_zeros(len(features), self.widest)
        for number, head in enumerate(self.heads, 1):
            of_task = task_ids == number
            if of_task.any():
                own = head(features[of_task])
                outputs[of_task, : own.shape[1]] = own
        return outputs


def optimizer(net: nn.Module, one_by_one: bool = False) -> torch.optim.Optimizer:
    """SGD as torch builds it by default, or updating one parameter after the other."""
    how = {"foreach": False, "fused": False} if one_by_one else {}
    return torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, nesterov=True, weight_decay=1e-5, **how)  # type: ignore[arg-type]


class PilImages(torch.utils.data.Dataset):
    """Grey images, cropped and normalised one by one as Pillow images."""

    def __init__(self, pixels: Tensor, targets: Tensor) -> None:
        from torchvision import transforms

        self.pixels, self.targets = pixels, targets.tolist()
        crop = transforms.RandomCrop(pixels.shape[-1], padding=4)
        self.transform = transforms.Compose([crop, transforms.ToTensor(), transforms.Normalize((0.5,), (0.25,))])

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[position, 0].numpy())), self.targets[position]
