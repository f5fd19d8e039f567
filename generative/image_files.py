"""The formats of image files. Each function reads one, and names a file that is not of it."""

import gzip
import tarfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm import tqdm

from generative.point_files import check_unchanged, stamp
from generative.ranks import is_first

FEWEST = 100  # images in a set
SIDES = 4, 256  # pixels, of the smallest and of the largest image
PICTURES = (".png", ".jpg", ".jpeg")
CIFAR = 32  # pixels, the side of an image of CIFAR-10
MANY = 1000  # pictures that take long enough to show progress
PART = 2**24  # entries of an array that are looked at together
BATCH = 50_000  # images in a file of CIFAR-10 at most


def find(folder: Path, name: str) -> Path | None:
    """The file of that name, or of that name and .gz, in a folder."""
    return next((p for p in (folder / name, folder / f"{name}.gz") if p.is_file()), None)


def read_bytes(path: Path, most: int) -> bytes:
    """A file's content, unpacked if it was packed by gzip.

    Raises
    ------
    ValueError
        If the file cannot be read, or if there are more than `most` bytes in it.
    """
    try:
        with open(path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        with (gzip.open if packed else open)(path, "rb") as file:
            content = file.read(most + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None
    if len(content) > most:
        raise ValueError(f"{path} has more than the {most} bytes that it should have")
    return content


def read_idx(path: Path, dimensions: int) -> np.ndarray:
    """An IDX file: two zeros, the type (8 for uint8), the number of dimensions, sizes, entries."""
    head = 4 + 4 * dimensions
    content = read_bytes(path, 2**31)
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
    return np.frombuffer(content, np.uint8, offset=head).reshape(shape).copy()


def read_cifar_files(folder: Path, names: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels and labels of each of these files."""
    most = BATCH * (1 + 3 * CIFAR**2)
    found = []
    for name in names:
        path = find(folder, name)
        if path is None:
            raise ValueError(f"{folder / name} is missing, though other files of CIFAR-10 are here")
        found.append(cifar_batch(read_bytes(path, most), str(path)))
    return found


def read_cifar_archive(archive: Path, names: list[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pixels and labels of each of these files in an archive, which is not unpacked to disk."""
    most = BATCH * (1 + 3 * CIFAR**2)
    try:
        with tarfile.open(archive) as tar:
            members = {Path(member.name).name: member for member in tar if member.isfile()}
            contents = [tar.extractfile(members[name]).read(most + 1) for name in names]
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ValueError(f"{archive} cannot be read: {error}") from None
    except KeyError as error:
        raise ValueError(f"{archive} lacks {error.args[0]}: not CIFAR-10's archive") from None
    return [cifar_batch(x, f"{archive}: {name}") for name, x in zip(names, contents)]


def cifar_batch(content: bytes, name: str) -> tuple[np.ndarray, np.ndarray]:
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


class Pixels:
    """Images (n, h, w, c), uint8, each read where it is asked for.

    Parameters
    ----------
    read : function
        Gives the images of an array of indices.
    marks : function
        Gives, for an array of indices, bytes that differ where the images do.
    index : int array (n,)
    shape : (h, w, c)
    """

    def __init__(
        self,
        read: Callable[[np.ndarray], np.ndarray],
        marks: Callable[[np.ndarray], Iterator[bytes]],
        index: np.ndarray,
        shape: tuple[int, int, int],
    ):
        self._read, self._marks, self._index = read, marks, index
        self.shape = len(index), *shape

    def part(self, which: np.ndarray) -> "Pixels":
        """Some of the images, which stay unread."""
        return Pixels(self._read, self._marks, self._index[which], self.shape[1:])

    def through(self, change: Callable[[np.ndarray], np.ndarray], shape: tuple) -> "Pixels":
        """The images (n, h, w, c) that a function makes of these, of another shape (h, w, c)."""
        return Pixels(lambda k: change(self._read(k)), self._marks, self._index, shape)

    def marks(self) -> Iterator[bytes]:
        return self._marks(self._index)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, which) -> np.ndarray:
        return self._read(self._index[which])


def of_array(array: np.ndarray) -> Pixels:
    """Images of a mapped array (n, h, w, c) of uint8 or of numbers from 0 to 1."""

    before = stamp(array)

    def read(index: np.ndarray) -> np.ndarray:
        check_unchanged(array, before)
        rows = array[index]
        return np.asarray(rows) if rows.dtype == np.uint8 else as_bytes(rows)

    def marks(index: np.ndarray) -> Iterator[bytes]:
        step = max(1, PART // array[0].size)
        return (read(index[k : k + step]).tobytes() for k in range(0, len(index), step))

    return Pixels(read, marks, np.arange(len(array)), array.shape[1:])


def as_bytes(x: np.ndarray) -> np.ndarray:
    """Numbers from 0 to 1 as uint8."""
    return np.rint(255 * x.astype(np.float64)).astype(np.uint8)


def read_folder(folder: Path, size: int, channels: int) -> tuple[Pixels, np.ndarray | None]:
    """All PNG and JPEG files of a folder: pixels (n, size, size, channels), and labels.

    A picture is cropped to its middle square, and read at most once. Each folder in the folder is a
    class, if all pictures are in these.
    """
    try:
        paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    except OSError as error:
        raise ValueError(f"{folder} cannot be read: {error.strerror}") from None
    if len(paths) < FEWEST:
        raise ValueError(
            f"data_dir: {folder} has {len(paths)} PNG and JPEG files; accepts {FEWEST} or more"
        )
    classes = [path.relative_to(folder).parts[0] for path in paths]
    inside = all(len(path.relative_to(folder).parts) > 1 for path in paths)
    names, labels = np.unique(classes, return_inverse=True)
    kept = {}

    def read(index: np.ndarray) -> np.ndarray:
        new = [k for k in index.tolist() if k not in kept]
        for k in tqdm(new, "reading pictures", disable=len(new) < MANY or not is_first()):
            kept[k] = _read_picture(paths[k], size, channels)
        return np.stack([kept[k] for k in index.tolist()])

    def marks(index: np.ndarray) -> Iterator[bytes]:
        """Names and sizes, as contents would have to be read."""
        files = ((str(paths[k].relative_to(folder)), paths[k].stat().st_size) for k in index)
        return (repr(file).encode() for file in files)

    pixels = Pixels(read, marks, np.arange(len(paths)), (size, size, channels))
    return pixels, labels if inside and len(names) > 1 else None


def _read_picture(path: Path, size: int, channels: int) -> np.ndarray:
    try:
        with Image.open(path, formats=("PNG", "JPEG")) as file:
            picture = ImageOps.exif_transpose(file)  # upright, as the camera was held
            if picture.mode.startswith("I"):  # 16 bits, of which Pillow would cut the higher ones
                picture = Image.fromarray((np.asarray(picture) / 257).round().astype(np.uint8))
            if "A" in picture.mode or "transparency" in picture.info:
                above = picture.convert("RGBA")
                picture = Image.new("RGBA", above.size, "white")
                picture.alpha_composite(above)
            side = min(picture.size)
            left, top = ((length - side) // 2 for length in picture.size)
            return resized(picture, (size, size, channels), (left, top, left + side, top + side))
    except UnidentifiedImageError:
        raise ValueError(f"{path} is no PNG or JPEG picture") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from None


def resized(
    picture: Image.Image,
    shape: tuple[int, int, int],
    part: tuple[int, int, int, int] | None = None,
) -> np.ndarray:
    """A picture, or a part of it, as pixels of this shape (h, w, c), grey or RGB."""
    height, width, channels = shape
    picture = picture.convert("RGB" if channels == 3 else "L")
    small = picture.resize((width, height), Image.Resampling.BOX, part)
    return np.asarray(small).reshape(shape)
