"""Downloads from a server in this process."""

import hashlib
import http.server
import re
import threading

import pytest

from generative import downloads
from generative.downloads import download

CONTENT = bytes(range(256)) * 1000
MD5 = hashlib.md5(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves `content`; can cut an answer off, and may know of ranges."""

    content, cut, ranges, asked = CONTENT, None, True, []

    def do_GET(self):
        self.asked.append(self.headers.get("Range"))
        start = int(re.findall(r"\d+", self.headers.get("Range", "0"))[0]) if self.ranges else 0
        if self.path != "/file.gz":
            return self.send_error(404)
        if start and start >= len(self.content):
            return self.send_error(416)
        rest = self.content[start:]
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(rest)))
        self.end_headers()
        self.wfile.write(rest[: self.cut])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setattr(Handler, "asked", [])
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as found:
        thread = threading.Thread(target=found.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{found.server_address[1]}/"
        found.shutdown()
        thread.join()


def names(folder):
    return [path.name for path in folder.iterdir()]


def test_a_file_comes_whole_and_from_the_first_address_that_has_it(server, tmp_path):
    path = tmp_path / "new folder" / "file.gz"
    download([server + "no", server + "file.gz"], path, MD5)
    assert path.read_bytes() == CONTENT and names(path.parent) == ["file.gz"]


@pytest.mark.parametrize("ranges", [True, False])
def test_a_connection_that_breaks_off_is_taken_up_again(server, tmp_path, monkeypatch, ranges):
    path = tmp_path / "file.gz"
    monkeypatch.setattr(Handler, "cut", 100_000)
    monkeypatch.setattr(Handler, "ranges", ranges)
    with pytest.raises(ValueError, match=r"cannot download file\.gz: http://127.*broke off"):
        download([server + "file.gz"], path, MD5)
    assert names(tmp_path) == ["file.gz.part"]
    monkeypatch.setattr(Handler, "cut", None)
    download([server + "file.gz"], path, MD5)
    assert path.read_bytes() == CONTENT and names(tmp_path) == ["file.gz"]
    assert Handler.asked[-1] == "bytes=100000-"


def test_a_part_that_is_complete_is_not_fetched_again(server, tmp_path):
    (tmp_path / "file.gz.part").write_bytes(CONTENT)
    download([server + "file.gz"], tmp_path / "file.gz", MD5)
    assert (tmp_path / "file.gz").read_bytes() == CONTENT
    assert Handler.asked == [f"bytes={len(CONTENT)}-"]  # answered by 416, there is no more


def test_another_file_is_refused_and_leaves_nothing(server, tmp_path, monkeypatch):
    monkeypatch.setattr(Handler, "content", CONTENT[::-1])
    with pytest.raises(ValueError, match="its MD5 is another one"):
        download([server + "file.gz"], tmp_path / "new" / "file.gz", MD5)
    assert names(tmp_path) == []


def test_what_is_there_stays_when_a_download_fails(server, tmp_path):
    (tmp_path / "file.gz").write_bytes(b"mine")
    with pytest.raises(ValueError, match="404"):
        download([server + "no"], tmp_path / "file.gz", MD5)
    with pytest.raises(ValueError, match=r"cannot download file\.gz.*refused"):
        download(["http://127.0.0.1:9/"], tmp_path / "file.gz", MD5)
    assert (tmp_path / "file.gz").read_bytes() == b"mine"


def test_a_folder_that_cannot_be_made_is_told(server, tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match=r"^cannot write to .*taken: File exists"):
        download([server + "file.gz"], tmp_path / "taken" / "file.gz", MD5)


def test_what_is_there_of_another_file_is_fetched_anew(server, tmp_path):
    """By the same call: the server's file may have changed since."""
    (tmp_path / "file.gz.part").write_bytes(b"old" * 1000)
    download([server + "file.gz"], tmp_path / "file.gz", MD5)
    assert (tmp_path / "file.gz").read_bytes() == CONTENT
    assert Handler.asked == ["bytes=3000-", None]


def test_one_download_at_a_time_in_a_folder(server, tmp_path, monkeypatch):
    """A second one is refused, and harms the first one in no way."""
    refused = []
    fetch = downloads._fetch

    def fetch_while_another_starts(address, part):
        if not refused:
            refused.append(address)
            with pytest.raises(ValueError, match="in use by another process"):
                download([address], tmp_path / "file.gz", MD5)
        fetch(address, part)

    monkeypatch.setattr(downloads, "_fetch", fetch_while_another_starts)
    download([server + "file.gz"], tmp_path / "file.gz", MD5)
    assert refused and (tmp_path / "file.gz").read_bytes() == CONTENT
    assert names(tmp_path) == ["file.gz"]
