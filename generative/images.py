"""Image data sets: those that are published, pictures in a folder, and a user's arrays."""

import hashlib
import zipfile
import zlib
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from generative.downloads import download
from generative.image_files import (
    FEWEST,
    SIDES,
    Pixels,
    as_bytes,
    find,
    of_array,
    read_cifar_archive,
    read_cifar_files,
    read_folder,
    read_idx,
    resized,
)
from generative.ranks import by_first


@dataclass(frozen=True)
class Images:
    """A set of images, split into those to train on and those to measure with.

    Attributes
    ----------
    train, held_out : uint8 arrays (n, h, w, c) and (m, h, w, c), or Pixels
        Pixels from 0 to 255; those of large files are read where they are asked for. c is 1 for
        grey, 3 for red, green and blue. Elsewhere, as networks want them, images have their
        channels first.
    train_labels, held_out_labels : int arrays (n,) and (m,), or None
        Classes from 0 up.
    own, others : Images or None, uint8 array (k, h, w, c) or None
        Of a contaminated set the one that it was, and foreign images like those in `train`.
    """

    train: np.ndarray | Pixels
    held_out: np.ndarray | Pixels
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None
    own: "Images | None" = None
    others: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.shape[1:]

    def digest(self) -> str:
        """SHA-256 of all pixels, or of a folder's names and sizes: the same for the same images,
        wherever their files are.
        """
        state = hashlib.sha256(repr((self.train.shape, self.held_out.shape)).encode())
        for pixels in (self.train, self.held_out):
            for content in pixels.marks() if isinstance(pixels, Pixels) else [pixels]:
                state.update(np.ascontiguousarray(content))
        return state.hexdigest()


MOST_HELD_OUT = 10000


def split(pixels: np.ndarray | Pixels, labels: np.ndarray | None, seed: int) -> Images:
    """A fifth of the images, at most 10,000, is held out, of each class where there are labels."""
    few = labels is None or np.bincount(labels)[np.unique(labels)].min() < 5
    share = min(0.2, MOST_HELD_OUT / len(pixels))
    train, held_out = train_test_split(
        np.arange(len(pixels)), test_size=share, random_state=seed, stratify=None if few else labels
    )
    parts = (None, None) if labels is None else (labels[train], labels[held_out])
    part = pixels.part if isinstance(pixels, Pixels) else pixels.__getitem__
    return Images(part(train), part(held_out), *parts)


# --------------------------------------------------------------------------------- Published sets

MNIST_FILES = {
    "train-images-idx3-ubyte": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
    "train-labels-idx1-ubyte": "d53e105ee54ea40749a09fcbcd1e9432",
    "t10k-images-idx3-ubyte": "9fb629c4189551a2d022fa330f9573f3",
    "t10k-labels-idx1-ubyte": "ec29112dd5afa0611ce80d1b7f02629c",
}
FASHION_FILES = {
    "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
    "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
    "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
    "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
}
CIFAR_FILES = {"cifar-10-binary.tar.gz": "c32a1d4ab5d03f1284b67883e8d87530"}


@dataclass(frozen=True)
class Published:
    """A set on the internet.

    Attributes
    ----------
    folder : str
        Where torchvision keeps it, beside a folder of the set's own name.
    addresses : tuple of str
        Each has all files.
    files : dict
        The MD5 of each file as it is published; those of IDX are packed, NAME.gz.
    unpacked : tuple of str
        What else will do: the files of an archive.
    """

    folder: str
    addresses: tuple[str, ...]
    files: dict[str, str]
    unpacked: tuple[str, ...] = ()

    def place(self, data_dir: Path, name: str) -> Path:
        """The folder with files of the set, or the one to put them in."""
        folders = (data_dir / name, data_dir / self.folder, data_dir)
        first = next(iter(self.files)), *self.unpacked[:1]
        return next((f for f in folders if any(find(f, file) for file in first)), folders[0])

    def download(self, folder: Path) -> None:
        """Fetch the files that the folder lacks."""
        if self.unpacked and all(find(folder, name) for name in self.unpacked):
            return
        for name, md5 in self.files.items():
            if not find(folder, name):
                packed = name if name.endswith(".gz") else name + ".gz"
                download([address + packed for address in self.addresses], folder / packed, md5)


PUBLISHED = {
    "mnist": Published(
        "MNIST/raw",
        (
            "https://ossci-datasets.s3.amazonaws.com/mnist/",
            "http://yann.lecun.com/exdb/mnist/",
        ),
        MNIST_FILES,
    ),
    "fashion-mnist": Published(
        "FashionMNIST/raw",
        ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
        FASHION_FILES,
    ),
    "cifar10": Published(
        "cifar-10-batches-bin",
        ("https://www.cs.toronto.edu/~kriz/",),
        CIFAR_FILES,
        (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"),
    ),
}
NAMES = ("digits", *PUBLISHED, "folder")
MOST = 2000  # foreign images that are kept


def read_images(
    name: str,
    data_dir: str | Path,
    seed: int = 0,
    *,
    size: int = 0,
    channels: int = 0,
    fetch: bool = False,
) -> Images:
    """A data set by its name.

    Parameters
    ----------
    name : str
        `digits` (8 x 8, in scikit-learn), `mnist`, `fashion-mnist`, `cifar10`, or `folder` for the
        PNG and JPEG files in `data_dir` and below it.
    data_dir : path
        Files are looked for in this folder, in `data_dir/NAME` and where torchvision keeps them.
    seed : int
        Chooses what is held out where the authors have no test set.
    size, channels : int
        Images are resized to a square of this side, and made grey (1) or RGB (3); 0 leaves them as
        they are, but the pictures of a folder, which are cropped to squares, become 64 x 64 and
        RGB.
    fetch : bool
        Whether to download what is missing into `data_dir/NAME`.

    Raises
    ------
    ValueError
        If there is no such set, or if files are missing, cannot be read, are not what their names
        say or cannot be downloaded.
    """
    if name not in NAMES:
        raise ValueError(f"there are no images {name!r}; accepts {', '.join(NAMES)}")
    data_dir = Path(data_dir)
    if name == "folder":
        return split(*read_folder(data_dir, size or 64, channels or 3), seed)
    if name == "digits":
        digits = load_digits()
        images = split(as_bytes(digits.images / 16)[..., None], digits.target, seed)
    else:
        place = PUBLISHED[name].place(data_dir, name)
        if fetch:
            by_first(lambda: PUBLISHED[name].download(place))
        images = read_cifar(place) if name == "cifar10" else read_mnist(place, seed)
    return with_shape(images, size, channels)


def read_mnist(folder: Path, seed: int) -> Images:
    """The IDX files of MNIST and of what has its format, packed by gzip or not.

    Labels may be missing. A fifth of the images is held out if the test set is missing.
    """
    paths = [find(folder, name) for name in MNIST_FILES]
    images, labels, test_images, test_labels = paths
    if images is None:
        raise ValueError(_missing(folder, [f"{name}.gz" for name in MNIST_FILES]))
    pixels = read_idx(images, 3)[..., None]
    _check_shape(pixels, str(images))
    of_pixels = None if labels is None else _labels_for(pixels, read_idx(labels, 1), labels)
    if test_images is None:
        return split(pixels, _contiguous(of_pixels), seed)
    held_out = read_idx(test_images, 3)[..., None]
    if held_out.shape[1:] != pixels.shape[1:]:
        raise ValueError(f"{test_images}: images differ in size from those of {images}")
    if of_pixels is None or test_labels is None:
        return Images(pixels, held_out)
    of_held_out = _labels_for(held_out, read_idx(test_labels, 1), test_labels)
    both = _contiguous(np.concatenate((of_pixels, of_held_out)))
    return Images(pixels, held_out, *np.split(both, [len(pixels)]))


def _labels_for(pixels: np.ndarray, labels: np.ndarray, path: Path) -> np.ndarray:
    if len(labels) != len(pixels):
        raise ValueError(f"{path} has {len(labels)} labels for {len(pixels)} images")
    return labels


def _contiguous(labels: np.ndarray | None) -> np.ndarray | None:
    """Labels as integers from 0 up, without gaps."""
    return None if labels is None else np.unique(labels, return_inverse=True)[1]


def read_cifar(folder: Path) -> Images:
    """The binary version of CIFAR-10: files `data_batch_1.bin` to `_5` and `test_batch.bin`, or the
    archive that holds them.
    """
    names = list(PUBLISHED["cifar10"].unpacked)
    archive = find(folder, "cifar-10-binary.tar")
    if find(folder, names[0]):
        batches = read_cifar_files(folder, names)
    elif archive:
        batches = read_cifar_archive(archive, names)
    elif any(folder.parent.rglob("data_batch_1")) or any(folder.parent.rglob("cifar-10-python*")):
        raise ValueError(
            "cifar10: only the pickled files (`cifar-10-python`) are here; reading a pickle can "
            "run a stranger's code, so take cifar-10-binary.tar.gz instead, or --download"
        )
    else:
        raise ValueError(_missing(folder, list(CIFAR_FILES)))
    *train, (held_out, held_out_labels) = batches
    pixels, labels = (np.concatenate(x) for x in zip(*train))
    return Images(pixels, held_out, labels, held_out_labels)


def _check_shape(pixels: np.ndarray, path: str) -> None:
    """ValueError unless these are enough images (n, h, w, c) of a usual size."""
    low, high = SIDES
    fits = pixels.ndim == 4 and all(low <= side <= high for side in pixels.shape[1:3])
    if not fits or len(pixels) < FEWEST or pixels.shape[3] not in (1, 3):
        raise ValueError(
            f"{path} has shape {pixels.shape}; accepts images (n, h, w), (n, h, w, 1) or "
            f"(n, h, w, 3), n from {FEWEST} up, h and w from {low} to {high}"
        )


def read_array(array: np.ndarray, labels: np.ndarray | None, name: str, seed: int) -> Images:
    """A user's images (n, h, w) or (n, h, w, c): uint8, or numbers from 0 to 1.

    `name` is what messages call them.

    Raises
    ------
    ValueError
        If the shape or the entries are none of images.
    """
    pixels = array[..., None] if array.ndim == 3 else array
    _check_shape(pixels, name)
    if pixels.dtype != np.uint8:
        numbers = pixels.dtype.kind in "biuf"
        low = high = None
        if numbers:
            low, high = by_first(lambda: (pixels.min(), pixels.max()))
        if pixels.dtype.kind not in "bf" or not (low >= 0 and high <= 1):
            span = f" from {low} to {high}" if numbers else ""
            raise ValueError(
                f"{name} holds {pixels.dtype}{span}; accepts uint8 from 0 to 255, or "
                f"floating-point numbers from 0 to 1"
            )
    if isinstance(array, np.memmap):
        pixels = of_array(pixels)
    elif pixels.dtype != np.uint8:
        pixels = as_bytes(pixels)
    if labels is not None:
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"{name}: the labels have shape {labels.shape} and type "
                f"{labels.dtype}; accepts {len(pixels)} integers"
            )
    return split(pixels, _contiguous(labels), seed)


def holds_images(path: str | Path) -> bool:
    """Whether a file is an array of images by its head; False if it cannot be read."""
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        if isinstance(array, np.ndarray):
            return array.ndim > 2
        with array:
            return True
    except (OSError, ValueError, EOFError, zipfile.BadZipFile):
        return False


def read_array_file(path: str | Path, seed: int, setting: str = "data_path") -> Images:
    """A user's images: a .npy file, or a .npz file of images and, if there are two, of labels.

    Raises
    ------
    ValueError
        If the file cannot be read or has no images; the message begins with the `setting`.
    """
    try:
        found = np.load(path, mmap_mode="r", allow_pickle=False)
        arrays = [found] if isinstance(found, np.ndarray) else [found[name] for name in found.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise ValueError(f"{setting}: {path} cannot be read ({error})") from None
    images = [array for array in arrays if array.ndim > 2]
    labels = [array for array in arrays if array.ndim == 1]
    if len(images) != 1 or len(labels) > 1 or len(images) + len(labels) != len(arrays):
        shapes = ", ".join(str(array.shape) for array in arrays)
        raise ValueError(
            f"{setting}: {path} has arrays of shapes {shapes}; accepts one of images (n, h, w) or "
            f"(n, h, w, c), and beside it none or one of labels (n,)"
        )
    return read_array(images[0], labels[0] if labels else None, f"{setting}: {path}", seed)


def with_shape(images: Images, size: int, channels: int) -> Images:
    """The same, resized to squares and made grey or RGB; 0 leaves sides or channels as they are."""
    height, width, own = images.shape
    shape = (size or height, size or width, channels or own)
    if shape == images.shape:
        return images
    train, held_out = (
        pixels.through(partial(_made_like, shape=shape), shape)
        if isinstance(pixels, Pixels)
        else _made_like(pixels, shape)
        for pixels in (images.train, images.held_out)
    )
    return replace(images, train=train, held_out=held_out)


def contaminated(images: Images, others: Images, share: float, seed: int) -> Images:
    """Replace a share of the training set, at least one image, by others.

    These are resized and made grey or RGB as the images are. Labels are dropped, as those of two
    sets are not about the same classes.
    """
    rng = np.random.default_rng(seed)
    count = max(1, round(share * len(images.train)))
    places = rng.choice(len(images.train), count, replace=False)
    kept = rng.permutation(len(others.train))[: max(count, MOST)]
    foreign = _made_like(others.train[kept], images.shape)
    train = images.train[:].copy()
    train[places] = foreign[np.arange(count) % len(foreign)]
    return Images(train, images.held_out, own=images, others=foreign)


def _made_like(pixels: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """Images (n, h, w, c) resized, grey or RGB, to this shape (h, w, c)."""
    grey = pixels.shape[3] == 1
    return np.stack([resized(Image.fromarray(x[..., 0] if grey else x), shape) for x in pixels])


def _missing(folder: Path, names: list[str]) -> str:
    return (
        f"{folder.name}: no files in {folder}; put {', '.join(names)} there, or let --download "
        f"fetch them"
    )
