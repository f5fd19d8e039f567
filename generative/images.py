"""Image data sets: files as their authors publish them -> arrays of pixels and labels.

`read_images` finds and reads a set by its name. Each format has one function. Files are compared
with what their format says, so that a short or foreign one is refused by its name.
"""

import gzip
import hashlib
import tarfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from generative.downloads import download

FEWEST = 100  # images in a set
SIDES = 4, 256  # pixels, of the smallest and of the largest image
PICTURES = (".png", ".jpg", ".jpeg")
CIFAR = 32  # pixels, the side of an image of CIFAR-10


@dataclass(frozen=True)
class Images:
    """A set of images, split into those to train on and those to measure with.

    Attributes
    ----------
    train, held_out : uint8 arrays (n, h, w, c) and (m, h, w, c)
        Pixels from 0 to 255; c is 1 for grey, 3 for red, green and blue.
    train_labels, held_out_labels : int arrays (n,) and (m,), or None
        Classes from 0 up.
    """

    train: np.ndarray
    held_out: np.ndarray
    train_labels: np.ndarray | None = None
    held_out_labels: np.ndarray | None = None

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return self.train.shape[1:]

    def digest(self) -> str:
        """SHA-256 of all pixels: the same for the same images, wherever their files are."""
        state = hashlib.sha256(repr((self.train.shape, self.held_out.shape)).encode())
        for pixels in (self.train, self.held_out):
            state.update(np.ascontiguousarray(pixels))
        return state.hexdigest()


def split(pixels: np.ndarray, labels: np.ndarray | None, seed: int) -> Images:
    """A fifth of the images is held out, of each class where there are labels."""
    few = labels is None or np.bincount(labels)[np.unique(labels)].min() < 5
    train, held_out = train_test_split(
        np.arange(len(pixels)), test_size=0.2, random_state=seed, stratify=None if few else labels
    )
    parts = (None, None) if labels is None else (labels[train], labels[held_out])
    return Images(pixels[train], pixels[held_out], *parts)


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
    """

    folder: str
    addresses: tuple[str, ...]
    files: dict[str, str]

    def download(self, folder: Path) -> None:
        """Fetch the files that the folder lacks."""
        for name, md5 in self.files.items():
            packed = name if name.endswith(".gz") else name + ".gz"
            if not ((folder / name).exists() or (folder / packed).exists()):
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
        "cifar-10-batches-bin", ("https://www.cs.toronto.edu/~kriz/",), CIFAR_FILES
    ),
}
NAMES = ("digits", *PUBLISHED, "folder")


def read_images(
    name: str,
    data_dir: str | Path,
    seed: int = 0,
    *,
    size: int = 64,
    channels: int = 3,
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
        Of `folder`: pictures are cropped to their middle square, resized and made grey (1) or RGB.
    fetch : bool
        Whether to download what is missing into `data_dir/NAME`.

    Raises
    ------
    ValueError
        If files are missing, cannot be read, are not what their names say or cannot be downloaded.
    """
    data_dir = Path(data_dir)
    if name == "digits":
        digits = load_digits()
        return split(_bytes(digits.images / 16)[..., None], digits.target, seed)
    if name == "folder":
        return split(*read_folder(data_dir, size, channels), seed)
    published = PUBLISHED[name]
    if fetch:
        published.download(data_dir / name)
    folders = (data_dir / name, data_dir / published.folder, data_dir)
    return read_cifar(folders) if name == "cifar10" else read_mnist(folders, seed)


# --------------------------------------------------------------------------------- Formats


def read_mnist(folders: tuple[Path, ...], seed: int) -> Images:
    """The IDX files of MNIST and of what has its format, packed by gzip or not.

    Labels may be missing. A fifth of the images is held out if the test set is missing.
    """
    images, labels, test_images, test_labels = (_first(folders, name) for name in MNIST_FILES)
    if images is None:
        raise ValueError(_missing(folders[0], [f"{name}.gz" for name in MNIST_FILES]))
    pixels = _read_idx(images, 3)[..., None]
    of_pixels = None if labels is None else _labels_for(pixels, _read_idx(labels, 1), labels)
    if test_images is None:
        return split(pixels, of_pixels, seed)
    held_out = _read_idx(test_images, 3)[..., None]
    if held_out.shape[1:] != pixels.shape[1:]:
        raise ValueError(f"{test_images}: images differ in size from those of {images}")
    if of_pixels is None or test_labels is None:
        return Images(pixels, held_out)
    return Images(
        pixels, held_out, of_pixels, _labels_for(held_out, _read_idx(test_labels, 1), test_labels)
    )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file: two zeros, the type (8 for uint8), the number of dimensions, sizes, entries."""
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    head = 4 + 4 * dimensions
    if len(content) < head or content[:4] != bytes((0, 0, 8, dimensions)):
        kind = "images" if dimensions == 3 else "labels"
        raise ValueError(f"{path} is no IDX file of {kind}")
    shape = tuple(np.frombuffer(content, ">u4", dimensions, 4).tolist())
    size = int(np.prod(shape, dtype=object))
    if len(content) != head + size or size == 0:
        raise ValueError(
            f"{path} has {len(content) - head} entries, but its head says {shape}: it is cut off "
            f"or not an IDX file"
        )
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape)


def _labels_for(pixels: np.ndarray, labels: np.ndarray, path: Path | str) -> np.ndarray:
    if len(labels) != len(pixels):
        raise ValueError(f"{path} has {len(labels)} labels for {len(pixels)} images")
    return labels.astype(np.int64)


def read_cifar(folders: tuple[Path, ...]) -> Images:
    """The binary version of CIFAR-10: files `data_batch_1.bin` to `_5` and `test_batch.bin`, or the
    archive that holds them.
    """
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    archive = _first(folders, "cifar-10-binary.tar")
    if all(_first(folders, name) for name in names):
        paths = [_first(folders, name) for name in names]
        batches = [_cifar_batch(_content(path), str(path)) for path in paths]
    elif archive:
        batches = [_cifar_batch(x, f"{archive}: {name}") for name, x in _members(archive, names)]
    else:
        pickled = [folder / "cifar-10-batches-py" for folder in folders] + list(folders)
        if any((folder / "data_batch_1").exists() for folder in pickled) or _first(
            folders, "cifar-10-python.tar"
        ):
            raise ValueError(
                "cifar10: only the pickled files (`cifar-10-python`) are here; reading a pickle "
                "can run a stranger's code, so take cifar-10-binary.tar.gz instead, or --download"
            )
        raise ValueError(_missing(folders[0], list(CIFAR_FILES)))
    *train, (held_out, held_out_labels) = batches
    pixels, labels = (np.concatenate(x) for x in zip(*train))
    return Images(pixels, held_out, labels, held_out_labels)


def _members(archive: Path, names: list[str]) -> Iterator[tuple[str, bytes]]:
    """The named files of an archive, in this order; nothing is unpacked to disk."""
    try:
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            found = {name: tar.extractfile(members[name]).read() for name in names}
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive} cannot be read: {error}") from None
    except KeyError as error:
        raise ValueError(f"{archive} lacks {error.args[0]}: not CIFAR-10's archive") from None
    return iter(found.items())


def _cifar_batch(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 32, 32, 3) and labels (n,) of records: a label, then red, green, blue planes."""
    record = 1 + 3 * CIFAR**2
    rows = len(content) // record
    if rows == 0 or len(content) != rows * record:
        raise ValueError(
            f"{name} has {len(content)} bytes, no multiple of the {record} of an image: it is cut "
            f"off or not a file of CIFAR-10's binary version"
        )
    rows = np.frombuffer(content, np.uint8).reshape(rows, record)
    labels = rows[:, 0].astype(np.int64)
    if labels.max() > 9:
        raise ValueError(f"{name} has a label of {labels.max()}: not a file of CIFAR-10")
    pixels = rows[:, 1:].reshape(-1, 3, CIFAR, CIFAR).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(pixels), labels


def read_folder(folder: Path, size: int, channels: int) -> tuple[np.ndarray, np.ndarray | None]:
    """All PNG and JPEG files of a folder: pixels (n, size, size, channels), and labels.

    A picture is cropped to its middle square. Each folder in the folder is a class, if all pictures
    are in these.
    """
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from None
    if len(paths) < FEWEST:
        raise ValueError(
            f"data_dir: {folder} has {len(paths)} PNG and JPEG files; accepts {FEWEST} or more"
        )
    pixels = np.stack([_read_picture(path, size, channels) for path in paths])
    classes = [path.relative_to(folder).parts[0] for path in paths]
    inside = all(len(path.relative_to(folder).parts) > 1 for path in paths)
    names, labels = np.unique(classes, return_inverse=True)
    return pixels, labels if inside and len(names) > 1 else None


def _read_picture(path: Path, size: int, channels: int) -> np.ndarray:
    try:
        with Image.open(path) as picture:
            picture = picture.convert("RGB" if channels == 3 else "L")
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            square = (left, top, left + side, top + side)
            small = picture.resize((size, size), Image.Resampling.BOX, square)
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no picture that can be read") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    return np.asarray(small).reshape(size, size, channels)


def read_array(array: np.ndarray, labels: np.ndarray | None, path: str, seed: int) -> Images:
    """A user's images (n, h, w) or (n, h, w, c): uint8, or numbers from 0 to 1.

    Raises
    ------
    ValueError
        If the shape or the entries are none of images.
    """
    low, high = SIDES
    pixels = array[..., None] if array.ndim == 3 else array
    sides_fit = pixels.ndim == 4 and all(low <= side <= high for side in pixels.shape[1:3])
    if not sides_fit or len(pixels) < FEWEST or pixels.shape[3] not in (1, 3):
        raise ValueError(
            f"data_path: {path} has shape {array.shape}; accepts images (n, h, w), (n, h, w, 1) or "
            f"(n, h, w, 3), n from {FEWEST} up, h and w from {low} to {high}"
        )
    if pixels.dtype != np.uint8:
        extremes = float(pixels.min()), float(pixels.max())
        if not (pixels.dtype.kind in "bf" and 0 <= extremes[0] and extremes[1] <= 1):
            raise ValueError(
                f"data_path: {path} holds {pixels.dtype} from {extremes[0]:g} to {extremes[1]:g}; "
                f"accepts uint8 from 0 to 255, or floating-point numbers from 0 to 1"
            )
        pixels = _bytes(pixels)
    if labels is not None:
        if labels.shape != (len(pixels),) or labels.dtype.kind not in "iu":
            raise ValueError(
                f"data_path: the labels in {path} have shape {labels.shape} and type "
                f"{labels.dtype}; accepts {len(pixels)} integers"
            )
        labels = np.unique(labels, return_inverse=True)[1]
    return split(pixels, labels, seed)


def contaminated(images: Images, others: Images, share: float, seed: int) -> tuple[Images, int]:
    """Replace a share of the training set by others, and say by how many.

    The others are resized and made grey or RGB as the images are. Labels are dropped, as those of
    two sets are not about the same classes.
    """
    rng = np.random.default_rng(seed)
    count = max(1, round(share * len(images.train)))
    places = rng.choice(len(images.train), count, replace=False)
    chosen = others.train[rng.choice(len(others.train), count, replace=count > len(others.train))]
    train = images.train.copy()
    train[places] = np.stack([_made_like(picture, images.shape) for picture in chosen])
    return replace(images, train=train, train_labels=None, held_out_labels=None), count


def _made_like(picture: np.ndarray, shape: tuple[int, int, int]) -> np.ndarray:
    """A picture (h, w, c) resized, grey or RGB, to another one's shape."""
    height, width, channels = shape
    image = Image.fromarray(picture[..., 0] if picture.shape[2] == 1 else picture)
    image = image.convert("RGB" if channels == 3 else "L").resize((width, height))
    return np.asarray(image).reshape(shape)


# --------------------------------------------------------------------------------- Files


def _first(folders: tuple[Path, ...], name: str) -> Path | None:
    """The file of that name, or of that name and .gz, in the first folder that has it."""
    for folder in folders:
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    return None


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None


def _missing(folder: Path, names: list[str]) -> str:
    return (
        f"{folder.name}: no files in {folder}; put {', '.join(names)} there, or let --download "
        f"fetch them"
    )


def _bytes(x: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 as uint8."""
    return np.rint(255 * x.astype(np.float64)).astype(np.uint8)
