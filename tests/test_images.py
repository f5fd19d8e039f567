"""Readers of image sets, on files that the tests make."""

import gzip
import io
import re
import tarfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from generative import image_files, images
from generative.image_files import read_folder
from generative.images import (
    contaminated,
    holds_images,
    read_array,
    read_array_file,
    read_images,
)
from generative.targets import from_images

RNG = np.random.default_rng(0)


def pictures(n, h=8, w=8, c=1):
    return RNG.integers(0, 256, (n, h, w, c), dtype=np.uint8)


def zipped(data):
    """Without the time of day: processes that share the tests have to agree on their names."""
    return gzip.compress(data, mtime=0)


def idx(array):
    head = bytes((0, 0, 8, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    return head + array.astype(np.uint8).tobytes()


def write_mnist(folder, packed=True, train=100, test=20):
    """The four files; what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for part, n in (("train", train), ("t10k", test)):
        x, y = pictures(n)[..., 0], RNG.integers(0, 10, n)
        for name, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y)):
            content = zipped(idx(array)) if packed else idx(array)
            (folder / (name + ".gz" * packed)).write_bytes(content)
        made += [x, y]
    return made


def cifar_batch(x, y):
    """Records of the binary version."""
    rows = x.transpose(0, 3, 1, 2).reshape(len(x), -1)
    return np.concatenate((y[:, None].astype(np.uint8), rows), 1).tobytes()


def write_cifar(folder, n=20):
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"data_batch_{k}.bin" for k in range(1, 6)] + ["test_batch.bin"]
    x, y = pictures(6 * n, 32, 32, 3), RNG.integers(0, 10, 6 * n)
    for k, name in enumerate(names):
        part = slice(k * n, (k + 1) * n)
        (folder / name).write_bytes(cifar_batch(x[part], y[part]))
    return x, y


def test_digits_are_split_by_class_and_by_the_seed():
    found = read_images("digits", "nowhere", seed=3)
    assert found.train.shape == (1437, 8, 8, 1) and found.held_out.shape == (360, 8, 8, 1)
    assert found.train.dtype == np.uint8 and found.train.max() == 255
    assert np.bincount(found.held_out_labels).min() >= 34
    assert found.digest() == read_images("digits", "nowhere", seed=3).digest()
    assert found.digest() != read_images("digits", "nowhere", seed=4).digest()
    both = np.concatenate((found.train, found.held_out)).reshape(1797, -1)
    assert len(np.unique(both, axis=0)) == 1797  # each once


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("place", ["", "mnist", "MNIST/raw"])
def test_idx_files_wherever_they_usually_lie(tmp_path, packed, place):
    x, y, test_x, test_y = write_mnist(tmp_path / place, packed)
    found = read_images("mnist", tmp_path)
    np.testing.assert_array_equal(found.train[..., 0], x)
    np.testing.assert_array_equal(found.held_out[..., 0], test_x)
    np.testing.assert_array_equal(found.train_labels, y)
    np.testing.assert_array_equal(found.held_out_labels, test_y)


def test_without_a_test_set_or_labels_a_fifth_is_held_out(tmp_path):
    write_mnist(tmp_path)
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        (tmp_path / name).unlink()
    found = read_images("fashion-mnist", tmp_path)
    assert len(found.train) == len(found.train_labels) == 80 and len(found.held_out) == 20
    (tmp_path / "train-labels-idx1-ubyte.gz").unlink()
    assert read_images("fashion-mnist", tmp_path).train_labels is None


BAD_IDX = {
    "train-images-idx3-ubyte.gz": [
        (zipped(b"PNG"), "no IDX file of images"),
        (b"\x1f\x8bnot gzip at all", "cannot be read"),
        (zipped(idx(np.zeros((100, 8, 8))))[:-20], "cannot be read"),
        (zipped(idx(np.zeros((100, 8, 8)))[:-1]), "6399 entries, but its head says"),
        (zipped(idx(np.zeros(100))), "no IDX file of images"),
        (zipped(idx(np.zeros((0, 8, 8)))), "its head says"),
        (zipped(bytes((0, 0, 8, 3)) + b"\xff" * 12), "its head says"),
    ],
    "train-labels-idx1-ubyte.gz": [(zipped(idx(np.zeros(99))), "99 labels for 100 images")],
    "t10k-images-idx3-ubyte.gz": [(zipped(idx(np.zeros((20, 8, 9)))), "images differ in size")],
}


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [(name, *case) for name, cases in BAD_IDX.items() for case in cases],
)
def test_bad_idx_files_are_named(tmp_path, name, content, words):
    write_mnist(tmp_path)
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}.*{words}"):
        read_images("mnist", tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "cifar10"])
def test_missing_files_are_listed(tmp_path, name):
    with pytest.raises(ValueError, match=rf"no files in .*{name}; put .*gz there, or let --down"):
        read_images(name, tmp_path)


def test_cifar_from_files_and_from_its_archive(tmp_path):
    x, y = write_cifar(tmp_path / "cifar-10-batches-bin")
    found = read_images("cifar10", tmp_path)
    np.testing.assert_array_equal(found.train, x[:100])
    np.testing.assert_array_equal(found.held_out_labels, y[100:])
    other = tmp_path / "other"
    other.mkdir()
    with tarfile.open(other / "cifar-10-binary.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "cifar-10-batches-bin", "cifar-10-batches-bin")
    assert read_images("cifar10", other).digest() == found.digest()


def test_bad_files_of_cifar_are_named(tmp_path):
    write_cifar(tmp_path)
    good = (tmp_path / "data_batch_3.bin").read_bytes()
    for content, words in (
        (good[:-1], "it is cut off"),
        (b"", "it is cut off"),
        (b"\x0a" + good[1:], "a label of 10"),
    ):
        (tmp_path / "data_batch_3.bin").write_bytes(content)
        with pytest.raises(ValueError, match=rf"data_batch_3\.bin.*{words}"):
            read_images("cifar10", tmp_path)
    (tmp_path / "data_batch_3.bin").unlink()
    with pytest.raises(ValueError, match=r"data_batch_3\.bin is missing, though other files"):
        read_images("cifar10", tmp_path)
    for path in tmp_path.glob("data_batch*"):
        path.unlink()
    archive = tmp_path / "cifar-10-binary.tar.gz"
    archive.write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"cifar-10-binary\.tar\.gz cannot be read"):
        read_images("cifar10", tmp_path)
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(tmp_path / "test_batch.bin", "test_batch.bin")
    with pytest.raises(ValueError, match=r"lacks data_batch_1\.bin"):
        read_images("cifar10", tmp_path)


def test_pickled_cifar_is_refused_with_the_reason(tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    (tmp_path / "cifar-10-batches-py" / "data_batch_1").write_bytes(b"")
    with pytest.raises(ValueError, match="reading a pickle can run a stranger's code"):
        read_images("cifar10", tmp_path)


def test_pictures_of_a_folder_are_cropped_resized_and_coloured(tmp_path):
    for k in range(100):
        folder = tmp_path / ("left" if k % 2 else "right")
        folder.mkdir(exist_ok=True)
        picture = np.zeros((24, 40, 3), np.uint8)
        picture[:, 8:32] = (200, 100, 50)  # the middle square
        suffix = ".png" if k else ".JPEG"
        Image.fromarray(picture).save(folder / f"{k}{suffix}")
    (tmp_path / "notes.txt").write_text("no picture")
    found = read_images("folder", tmp_path, size=8)
    assert found.shape == (8, 8, 3) and len(found.train) == 80
    assert abs(found.train[:].astype(int) - (200, 100, 50)).max() <= 2
    assert sorted(set(found.train_labels)) == [0, 1]
    grey = read_images("folder", tmp_path, size=6, channels=1)
    assert grey.shape == (6, 6, 1) and np.ptp(grey.train[:]) <= 2
    (tmp_path / "left" / "1.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(ValueError, match=r"1\.png is no PNG or JPEG picture"):
        read_folder(tmp_path, 8, 3)[0][:]
    whole = (tmp_path / "left" / "3.png").read_bytes()
    (tmp_path / "left" / "1.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"1\.png cannot be read"):
        read_folder(tmp_path, 8, 3)[0][:]
    with pytest.raises(ValueError, match=r"nothing has 0 PNG and JPEG files; accepts 100"):
        read_images("folder", tmp_path / "nothing")


def test_only_pictures_that_are_asked_for_are_read_and_once(tmp_path, monkeypatch):
    for k in range(120):
        Image.new("L", (8, 8), k).save(tmp_path / f"{k:03}.png")
    read, count = image_files._read_picture, Counter()
    monkeypatch.setattr(
        image_files,
        "_read_picture",
        lambda path, *shape: count.update([path]) or read(path, *shape),
    )
    found = read_images("folder", tmp_path, size=8, channels=1)
    target, digest = from_images(found), found.digest()
    assert not count
    for _ in range(2):
        assert len(target.draw(10, torch.Generator().manual_seed(0))) == 10
    assert len(count) == 10 and set(count.values()) == {1}
    (tmp_path / "000.png").write_bytes((tmp_path / "000.png").read_bytes() + b" ")
    assert read_images("folder", tmp_path, size=8, channels=1).digest() != digest


def test_a_mapped_array_gives_what_it_gives_in_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(image_files, "PART", 1000)
    for name, x in {"bytes": pictures(100, 9, 7, 3), "floats": pictures(100) / 255}.items():
        np.save(tmp_path / f"{name}.npy", x)
        mapped, whole = read_array_file(tmp_path / f"{name}.npy", 0), read_array(x, None, name, 0)
        assert mapped.digest() == whole.digest()
        for a, b in ((mapped.train, whole.train), (mapped.held_out, whole.held_out)):
            np.testing.assert_array_equal(a[:], b)
            assert a.shape == b.shape


def test_pictures_as_a_viewer_shows_them(tmp_path):
    """Of 16 bits, transparent, with a palette, and turned by their EXIF."""
    for k in range(95):
        Image.new("L", (8, 8), 7).save(tmp_path / f"z{k}.png")
    deep = np.repeat(np.linspace(0, 65535, 8)[:, None], 8, 1).astype(np.uint16)
    Image.fromarray(deep).save(tmp_path / "a.png")
    Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "b.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([9, 9, 9, 200, 100, 50])
    palette.save(tmp_path / "c.png", transparency=b"\xff\xff")
    lying = np.zeros((8, 8), np.uint8)
    lying[:, :4] = 255  # white on the left; turned by 90 degrees, above
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(lying).save(tmp_path / "d.png", exif=exif)
    Image.new("L", (8, 8), 3).save(tmp_path / "e.bmp")
    (tmp_path / "e.bmp").rename(tmp_path / "y.jpg")
    with pytest.raises(ValueError, match=r"y\.jpg is no PNG or JPEG picture"):
        read_folder(tmp_path, 8, 3)[0][:]
    (tmp_path / "y.jpg").unlink()
    Image.new("L", (8, 8), 7).save(tmp_path / "z99.png")
    a, b, c, d, *_ = read_folder(tmp_path, 8, 3)[0][:]
    assert a[:, 0, 0].tolist() == np.linspace(0, 255, 8).round().astype(int).tolist()
    assert (b == 255).all() and (c == (200, 100, 50)).all()
    assert (d[:4] == 255).all() and (d[4:] == 0).all()


def test_images_are_resized_and_coloured_on_request():
    found = read_images("digits", "", size=16, channels=3)
    assert found.shape == (16, 16, 3) and (np.ptp(found.train, axis=3) == 0).all()
    own = read_images("digits", "")
    np.testing.assert_array_equal(found.train[:, ::2, ::2, 0], own.train[..., 0])
    with pytest.raises(ValueError, match="there are no images 'imagenet'; accepts digits, mnist"):
        read_images("imagenet", "")


def test_files_of_a_set_come_from_one_folder(tmp_path):
    """Those of another set may lie beside it."""
    write_mnist(tmp_path / "mnist")
    x, _, test_x, _ = write_mnist(tmp_path)
    (tmp_path / "mnist" / "train-labels-idx1-ubyte.gz").unlink()
    assert read_images("mnist", tmp_path).train_labels is None
    np.testing.assert_array_equal(read_images("fashion-mnist", tmp_path).train[..., 0], x)
    np.testing.assert_array_equal(read_images("fashion-mnist", tmp_path).held_out[..., 0], test_x)


def test_labels_are_counted_from_zero(tmp_path):
    write_mnist(tmp_path)
    for name, n in (("train", 100), ("t10k", 20)):
        labels = 3 + 4 * (np.arange(n) % 5)
        path = tmp_path / f"{name}-labels-idx1-ubyte.gz"
        path.write_bytes(zipped(idx(labels)))
    found = read_images("mnist", tmp_path)
    assert found.train_labels.tolist() == (np.arange(100) % 5).tolist()
    assert found.held_out_labels.tolist() == (np.arange(20) % 5).tolist()


def test_a_file_of_arrays(tmp_path):
    x, labels = pictures(100), np.arange(100) % 7
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "both.npz", labels=labels, pictures=x)
    np.savez(tmp_path / "two.npz", x, x)
    np.save(tmp_path / "points.npy", x.reshape(100, -1))
    assert holds_images(tmp_path / "x.npy") and holds_images(tmp_path / "both.npz")
    assert not holds_images(tmp_path / "points.npy") and not holds_images(tmp_path / "none.npy")
    found = read_array_file(tmp_path / "both.npz", 0)
    assert found.shape == read_array_file(tmp_path / "x.npy", 0).shape == (8, 8, 1)
    assert sorted(set(found.train_labels)) == list(range(7))
    with pytest.raises(ValueError, match=r"two\.npz has arrays of shapes .*; accepts one of im"):
        read_array_file(tmp_path / "two.npz", 0)
    (tmp_path / "x.npy").write_bytes(b"\x93NUMPY")
    with pytest.raises(ValueError, match=r"x\.npy cannot be read"):
        read_array_file(tmp_path / "x.npy", 0)


def test_arrays_of_images_and_what_is_none():
    x = pictures(100, 9, 7, 3)
    labels = np.repeat([3, 8], 50)
    found = read_array(x, labels, "data_path: mine.npz", 0)
    assert found.shape == (9, 7, 3) and set(found.train_labels) == {0, 1}
    as_floats = read_array(x / 255, labels, "data_path: mine.npz", 0)
    assert as_floats.digest() == found.digest()
    assert read_array(x[..., 0], None, "data_path: mine.npy", 0).shape == (9, 7, 1)
    for bad in (x[:99], x[..., :2], x[:, :3], x[0], np.zeros((100, 8, 300))):
        with pytest.raises(ValueError, match=r"data_path: mine\.npy has shape"):
            read_array(bad, None, "data_path: mine.npy", 0)
    for bad in (
        x.astype(np.int64),
        x / 100,
        x.astype(complex),
        x.astype("U3"),
        np.full(x.shape, np.nan),
        x / 255 - 0.5,
    ):
        with pytest.raises(ValueError, match=r"data_path: mine\.npy holds"):
            read_array(bad, None, "data_path: mine.npy", 0)
    for bad in (labels[:-1], labels / 2, labels[:, None]):
        with pytest.raises(ValueError, match=r"data_path: mine\.npy: the labels"):
            read_array(x, bad, "data_path: mine.npy", 0)


def test_a_share_of_the_training_set_is_replaced_by_others():
    mine = read_array(np.zeros((250, 8, 8, 3), np.uint8), None, "", 0)
    others = read_array(np.full((100, 5, 5), 255, np.uint8), np.arange(100) % 3, "", 0)
    mixed = contaminated(mine, others, 0.05, seed=1)
    foreign = (mixed.train == 255).all((1, 2, 3))
    assert foreign.sum() == 10 and (mixed.train[~foreign] == 0).all()
    assert (mixed.held_out == 0).all() and (mine.train == 0).all()
    assert mixed.own is mine and mixed.others.shape == (80, 8, 8, 3)
    again, other = (contaminated(mine, others, 0.05, seed).digest() for seed in (1, 2))
    assert again == mixed.digest() != other
    many = contaminated(mine, others, 0.9, seed=0)  # more than there are others
    assert (many.train == 255).all((1, 2, 3)).sum() == 180


def test_what_is_downloaded_is_what_is_read(tmp_path, monkeypatch):
    """The set's own files are fetched, but for those that are there."""
    write_mnist(tmp_path / "server")
    asked = []

    def fetch(addresses, path, md5):
        asked.append(addresses[0])
        path.parent.mkdir(parents=True, exist_ok=True)
        content = (tmp_path / "server" / path.name).read_bytes()
        path.write_bytes(content)
        assert re.fullmatch("[0-9a-f]{32}", md5)

    monkeypatch.setattr(images, "download", fetch)
    found = read_images("mnist", tmp_path / "data", fetch=True)
    assert len(found.train) == 100 and len(asked) == 4
    assert read_images("mnist", tmp_path / "data", fetch=True).digest() == found.digest()
    assert len(asked) == 4
    (tmp_path / "data" / "mnist").rename(tmp_path / "data" / "elsewhere")
    write_mnist(tmp_path / "data" / "MNIST" / "raw", packed=False)
    read_images("mnist", tmp_path / "data", fetch=True)  # where torchvision keeps them
    assert len(asked) == 4
    assert all(address.endswith("-ubyte.gz") for address in asked)


def test_the_archive_is_read_in_place(tmp_path):
    """Members with strange paths are found by their names and written nowhere."""
    x, _ = write_cifar(tmp_path / "files")
    archive = tmp_path / "data" / "cifar-10-binary.tar.gz"
    archive.parent.mkdir()
    with tarfile.open(archive, "w:gz") as tar:
        for path in sorted((tmp_path / "files").iterdir()):
            info = tarfile.TarInfo(f"../../{path.name}")
            info.size = path.stat().st_size
            tar.addfile(info, io.BytesIO(path.read_bytes()))
    before = sorted(tmp_path.rglob("*"))
    np.testing.assert_array_equal(read_images("cifar10", archive.parent).train, x[:100])
    assert sorted(tmp_path.rglob("*")) == before
