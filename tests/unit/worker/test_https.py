"""Pages over real TLS: a certificate of a trusted authority is taken, any other refused."""

from __future__ import annotations

import ssl
import subprocess
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from website import Site

from crawler.job import Job
from crawler.messages import Batch, Cause, Report, Target
from crawler.worker import connect
from crawler.worker.batch import fetch_batch
from crawler.worker.fetch import Client
from crawler.worker.fetch_errors import TLSError


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a certificate authority (ca.pem), and a server's certificate that it signed, for 127.0.0.1."""
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    openssl(
        *("req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=test authority"),
        *("-addext", "keyUsage=critical,keyCertSign", "-keyout", "ca.key", "-out", "ca.pem"),
    )
    openssl("req", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=site", "-keyout", "site.key", "-out", "site.csr")
    for name, known_as in (("site", "IP:127.0.0.1"), ("other", "IP:192.0.2.1"), ("named", "DNS:site.test")):
        (folder / "names").write_text(f"subjectAltName={known_as}\n")
        openssl(
            *("x509", "-req", "-in", "site.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "names", "-out", f"{name}.pem"),
        )
    return folder


@pytest.fixture
def secure(site: Site, authority: Path) -> Site:
    """A site that speaks TLS."""
    site.speak_tls(authority / "site.pem", authority / "site.key")
    site.url = f"https://{site.host}"
    site.tree(3)
    return site


@pytest.fixture(params=["own", "requests"])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each of the two clients."""
    return request.param


def crawl(site: Site, kind: Any, context: ssl.SSLContext | None = None) -> Report:
    batch = Batch(
        lease="l",
        job=Job(name="t", delay=0),
        host=site.host,
        targets=[Target(url=f"{site.url}/{path}", depth=0) for path in ("", "1")],
        expires_at=time.time() + 60,
    )
    with Client("x", context or connect.tls_context(), kind) as client:
        return fetch_batch(batch, client, threading.Event(), worker="t")


def trusting(authority: Path) -> ssl.SSLContext:
    return connect.new_context(str(authority / "ca.pem"))


def test_pages_are_fetched_over_https(secure: Site, authority: Path, kind: Any) -> None:
    report = crawl(secure, kind, trusting(authority))
    assert [(page.url, page.state, page.title) for page in report.results] == [
        (f"{secure.url}/", "done", "Page 0"),
        (f"{secure.url}/1", "done", "Page 1"),
    ]
    assert secure.paths == ["/robots.txt", "/", "/1"]
    assert {link.url.partition("//")[0] for link in report.links} == {"https:"}


def test_a_certificate_of_an_unknown_authority_is_refused(secure: Site, kind: Any) -> None:
    report = crawl(secure, kind)
    assert (report.results, secure.paths) == ([], [])
    assert report.back_off is not None
    assert "certificate verify failed" in report.back_off.reason
    with (
        Client("x", kind=kind) as client,
        pytest.raises(TLSError, match=r"^TLS: .*certificate verify failed") as failed,
    ):
        client.get(f"{secure.url}/", max_body=1000)
    assert failed.value.cause == Cause.TLS


def test_a_certificate_for_another_name_is_refused(site: Site, authority: Path, kind: Any) -> None:
    site.speak_tls(authority / "other.pem", authority / "site.key")
    with Client("x", trusting(authority), kind) as client, pytest.raises(TLSError, match=r"mismatch|not valid for"):
        client.get(f"https://{site.host}/", max_body=1000)
    assert site.paths == []


def test_a_name_s_certificate_is_verified_by_the_name_not_the_address(
    site: Site, authority: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection goes to the address that was judged; TLS is told the name (SNI), and verifies it."""
    real = connect.socket.getaddrinfo
    monkeypatch.setattr(connect.socket, "getaddrinfo", lambda _, port, **options: real("127.0.0.1", port, **options))
    site.speak_tls(authority / "named.pem", authority / "site.key")
    port = site.host.rpartition(":")[2]
    with Client("x", trusting(authority), kind) as client:
        assert client.get(f"https://site.test:{port}/", max_body=1000).status == 404
        assert site.requests[0].headers["Host"] == f"site.test:{port}"
        with pytest.raises(TLSError, match=r"mismatch|not valid for|doesn't match"):
            client.get(f"https://other.test:{port}/", max_body=1000)
    assert len(site.requests) == 1


def test_the_system_s_authorities_are_trusted(
    secure: Site, authority: Path, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ours is one of the system's here, by the variable that OpenSSL reads."""
    monkeypatch.setenv("SSL_CERT_FILE", str(authority / "ca.pem"))
    monkeypatch.setattr(connect, "_CONTEXT", None)
    assert [page.state for page in crawl(secure, kind).results] == ["done", "done"]
    assert connect.tls_context().minimum_version >= ssl.TLSVersion.TLSv1_2
