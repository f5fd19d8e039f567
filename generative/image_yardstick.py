"""Measures generated images by held-out ones."""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from generative.features import Autoencoder, Classifier
from generative.image_metrics import (
    class_shares,
    density_and_coverage,
    frechet_distance,
    nearer_share,
    precision_and_recall,
    share_of_the_unseen,
)
from generative.images import Images
from generative.inception import inception_distance
from generative.metrics import Yardstick
from generative.targets import Target, image_rows

STEPS = 800  # minibatches that a network learns features from
FEW_STEPS = 300  # the same, to tell foreign images
LEARNT = 10000  # images that it learns them from, at most
MANY = 2500  # images for a Frechet distance, at most
QUICK = 1000  # the same, during a training
NEIGHBOURS = 1000  # images for what takes all distances between them, at most
WORDS = "training a network to measure with"
ENTRIES = 2**27  # of images at once, half a gigabyte
LATENTS = 24  # of an autoencoder whose latents are features


def fitting(shape: tuple[int, int, int]) -> int:
    """How many images of this shape are looked at together, at most."""
    return max(1000, ENTRIES // math.prod(shape))


class Eye(nn.Module):
    """Networks that look at images, trained on a data set alone and never shown to a generator.

    Attributes
    ----------
    model : Classifier or Autoencoder
        It gives features: a classifier of the labels or, if there are none, an autoencoder.
    teller : Classifier or None
        It tells foreign images from others, if the training set is contaminated.
    """

    def __init__(self, images: Images):
        super().__init__()
        own = images.own or images
        height, width, channels = own.shape
        shape = channels, height, width
        self.labelled = own.train_labels is not None
        if self.labelled:
            self.model = Classifier(shape, int(own.train_labels.max()) + 1)
        else:
            self.model = Autoencoder(shape, LATENTS)
        self.teller = None if images.others is None else Classifier(shape, 2)

    @property
    def words(self) -> str:
        """What the features are."""
        return "a classifier's features" if self.labelled else "an autoencoder's latents"

    def train_on(self, images: Images, rng: torch.Generator) -> None:
        """Learn from the training set, less the foreign images, on the device of rng."""
        own = images.own or images
        learnt = min(LEARNT, fitting(own.shape))
        rows = image_rows(torch.from_numpy(own.train[:learnt])).to(rng.device)
        if self.labelled:
            labels = torch.from_numpy(own.train_labels[:learnt]).to(rng.device)
            self.model.train_on(rows, labels, STEPS, rng, WORDS)
        else:
            self.model.train_on(rows, STEPS, rng, words=WORDS)
        if self.teller:
            others = image_rows(torch.from_numpy(images.others)).to(rng.device)
            both = torch.cat((rows, others))
            labels = (torch.arange(len(both), device=rng.device) >= len(rows)).long()
            self.teller.train_on(both, labels, FEW_STEPS, rng, WORDS)

    def features(self, x: Tensor) -> Tensor:
        """Images (n, c h w) to (n, d)."""
        return self.model.features(x) if self.labelled else self.model.encode(x)

    def foreign_share(self, x: Tensor) -> float:
        """The share of images that are taken for foreign ones."""
        return float(self.teller.classes(x).double().mean())


def new_eye(images: Images, rng: torch.Generator, learnt: dict | None = None) -> Eye:
    """With the weights `learnt`, or trained now."""
    eye = Eye(images).to(rng.device)
    if learnt is None:
        eye.train_on(images, rng)
    else:
        eye.load_state_dict(learnt)
    return eye.eval()


class ImageYardstick:
    """Measures generated images by held-out ones, in features and in pixels.

    Parameters
    ----------
    target : Target
        Of images.
    data : tensor (n, c h w)
        The training set.
    eye : Eye
        Gives features.
    rng : torch.Generator
        Draws pairs of sets of held-out images.
    full : bool
        Whether to take all metrics; otherwise the Frechet distance and W2, with few images.
    inception : bool
        Whether Inception's Frechet distance, `fid`, is one of them all.

    Attributes
    ----------
    reference : dict
        What training images have in place of generated ones, each with `_real` behind its name, and
        the two-sample W2 in pixels of :class:`generative.metrics.Yardstick`. Of the share that is
        nearer to the training images than to the held-out ones it is that of unseen images.
    """

    def __init__(
        self,
        target: Target,
        data: Tensor,
        eye: Eye,
        rng: torch.Generator,
        full: bool,
        inception: bool = False,
    ):
        self.eye, self.full, self.data, self.shape = eye, full, data, target.shape
        self.inception = full and inception
        self.pixels = Yardstick(target, data, rng, full=False)
        most = fitting(target.shape)
        self.held_out = torch.from_numpy(target.held_out[:most]).to(data.device)
        self.due = None
        own = target.images.own or target.images
        if eye.labelled:
            self.due = torch.from_numpy(own.train_labels).bincount().to(data.device)
            self.due = self.due / self.due.sum()
        self.count = min(MANY if full else QUICK, len(data))
        self.features = eye.features(self.held_out[:MANY])
        real = image_rows(torch.from_numpy(own.train[: self.count])).to(data.device)
        found = self._measure(real)
        if full:
            found["nearer_training"] = share_of_the_unseen(data, self.held_out)
        if eye.teller:
            found["foreign"] = eye.foreign_share(data)
        self.reference = {f"{name}_real": value for name, value in found.items()}
        self.reference |= self.pixels.reference

    def measure(self, sample: Callable[..., Tensor]) -> dict[str, float]:
        """Of generated images, which `sample(n)` gives as rows (n, c h w)."""
        x = sample(self.count).float()
        found = self._measure(x)
        if self.full:
            found["nearer_training"] = nearer_share(x[:NEIGHBOURS], self.data, self.held_out)
        if self.eye.teller:
            found["foreign"] = self.eye.foreign_share(x)
        return found | self.pixels.measure(sample)

    def _measure(self, x: Tensor) -> dict[str, float]:
        """What generated and real images have alike."""
        features = self.eye.features(x)
        found = {"frechet": frechet_distance(features, self.features)}
        if not self.full:
            return found
        count = min(NEIGHBOURS, len(features), len(self.features))
        pair = features[:count], self.features[:count]
        found["precision"], found["recall"] = precision_and_recall(*pair)
        found["density"], found["coverage"] = density_and_coverage(*pair)
        if self.inception:
            found["fid"] = inception_distance(x, self.held_out[:MANY], self.shape)
        if self.due is not None:
            found |= class_shares(self.eye.model.classes(x), self.due)
        return found
