"""Where images are compared, and what a run reads there: pixels, an autoencoder's latents, patches.

Each class has settings of its own, and usual values there of those in Config.
"""

from dataclasses import dataclass

from generative.rules import Count, Flag, Text, integers, integers_among, numbers, one_of

NAMES = ("latent", "pixels", "patches")
Side = integers_among({0, *range(4, 257)}, "0, or integers from 4 to 256")


@dataclass(kw_only=True)
class ImageSettings:
    """In all spaces."""

    epochs: int = 20
    plot_interval: int = 5
    steps_per_epoch: int = 10
    latent: str = "gaussian"
    stratified: bool = False
    average: float = 0.7
    space: one_of(NAMES) = "latent"  # where images are compared
    data_dir: Text = "data"  # where image files are looked for, here or in a folder of that name
    download: Flag = False  # fetch files of mnist, fashion-mnist or cifar10 that are not there
    size: Side = 0  # pixels of a side to resize images to; 0: as they are, folder: 64
    channels: integers_among({0, 1, 3}, "0, 1, 3") = 0  # 1: grey, 3: RGB; 0: as they are, folder: 3
    contaminate: Text = ""  # another image set, or a file of images, to mix into the training set
    share: numbers(0, 1) = 0.01  # of the training set that is replaced by those
    inception: Flag = False  # also Inception's Frechet distance, by torch-fidelity


@dataclass(kw_only=True)
class LatentSettings(ImageSettings):
    """The generator makes latents, which the autoencoder decodes."""

    g_dim: int = 512
    latent_dim: Count = 32  # numbers that the autoencoder makes of an image
    autoencoder_steps: Count = 1000  # minibatches that it learns from, before the generator does
    autoencoder_share: numbers(0, 1) = 0.4  # of `seconds` that it learns for, if there is a limit


@dataclass(kw_only=True)
class PixelSettings(ImageSettings):
    """The generator makes images by transposed convolutions."""

    epochs: int = 200
    plot_interval: int = 40
    steps_per_epoch: int = 1
    average: float = 0.97
    g_dim: int = 32
    z_dim: int = 64
    space: one_of(NAMES) = "pixels"  # where images are compared
    attention: Flag = False  # self-attention in convolutional networks


@dataclass(kw_only=True)
class PatchSettings(PixelSettings):
    """The same; plans are between the patches at each place."""

    batchsize: int = 128
    space: one_of(NAMES) = "patches"  # where images are compared
    patch_size: integers(2) = 8  # pixels of a side
    patch_stride: Count = 4  # pixels between the places of patches
    directions: integers(0) = 0  # lines on which patches are sorted; 0: plans between patches


SETTINGS = {"latent": LatentSettings, "pixels": PixelSettings, "patches": PatchSettings}
