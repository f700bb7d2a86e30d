"""Where a process's settings come from, and which of two wins."""

from __future__ import annotations

from pathlib import Path

import pytest

from crawler import settings


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("BROKER_URL", "BROKER_URL_FILE", "DATABASE_URL", "DATABASE_URL_FILE", "CONTACT", "HOST", "RELEASE"):
        monkeypatch.delenv(f"CRAWLER_{name}", raising=False)
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(settings, "PROJECT", tmp_path)


def deployed(folder: Path, fleet: str) -> str:
    """What deploy.yml leaves on the control node."""
    url = f"amqp://seed:secret@{fleet}/crawler"
    path = folder / ".fleet" / fleet / "broker_url"
    path.parent.mkdir(parents=True)
    path.write_text(url + "\n")
    return url


def test_without_any_the_remedy_is_told() -> None:
    with pytest.raises(settings.SettingMissingError, match=r"ansible-playbook deploy\.yml.*--local"):
        settings.broker_url()
    with pytest.raises(settings.SettingMissingError, match="for the fleet 'paris'"):
        settings.broker_url("paris")
    with pytest.raises(settings.SettingMissingError, match="sudo crawler"):
        settings.database_url()


def test_the_broker_of_a_fleet_is_what_deploy_left(tmp_path: Path) -> None:
    paris, current = deployed(tmp_path, "paris"), deployed(tmp_path, "current")
    assert settings.broker_url("paris") == paris
    assert settings.broker_url() == current


def test_a_fleet_that_is_named_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    paris, _ = deployed(tmp_path, "paris"), deployed(tmp_path, "current")
    monkeypatch.setenv("CRAWLER_BROKER_URL", "amqp://by-hand/")
    assert settings.broker_url() == "amqp://by-hand/"
    assert settings.broker_url("paris") == paris
    assert settings.use_fleet("paris") == paris
    assert settings.broker_url() == paris  # from now on, in this process


def test_secrets_come_from_the_environment_a_file_or_systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "database_url").write_text("from systemd\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert settings.database_url() == "from systemd"
    (tmp_path / "another").write_text("from a file\n")
    monkeypatch.setenv("CRAWLER_DATABASE_URL_FILE", str(tmp_path / "another"))
    assert settings.database_url() == "from a file"
    monkeypatch.setenv("CRAWLER_DATABASE_URL", "from the environment")
    assert settings.database_url() == "from the environment"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://seed:se:cret@host:5672/crawler", "amqp://seed:***@host:5672/crawler"),
        ("postgresql+psycopg://crawler:x%40y@/crawler", "postgresql+psycopg://crawler:***@/crawler"),
        ("amqp://:secret@host/", "amqp://:***@host/"),
        ("amqp://host:5672/crawler", "amqp://host:5672/crawler"),
        ("memory://", "memory://"),
    ],
)
def test_no_password_is_shown(url: str, shown: str) -> None:
    assert settings.without_password(url) == shown


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ("", []),
        ("8443", [8443]),
        ("8000-8002, 8443", [8000, 8001, 8002, 8443]),
        (" 1,65535 ", [1, 65535]),
        ("80-80", [80]),
    ],
)
def test_ports_that_may_be_asked(monkeypatch: pytest.MonkeyPatch, text: str, ports: list[int]) -> None:
    monkeypatch.setenv("CRAWLER_ALLOW_PORTS", text)
    assert [port for allowed in settings.allow_ports() for port in allowed] == ports


@pytest.mark.parametrize("text", ["0", "65536", "x", "8000-", "-8000", "9000-80", "1-2-3", "80:81", "\u0668", "100000"])
def test_ports_that_are_none_are_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("CRAWLER_ALLOW_PORTS", text)
    with pytest.raises(settings.SettingInvalidError, match=r"CRAWLER_ALLOW_PORTS: .*; write ports as 8443, 8000-8999"):
        settings.allow_ports()


def test_networks_that_may_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRAWLER_ALLOW_NETWORKS", raising=False)
    assert settings.allow_networks() == ()
    monkeypatch.setenv("CRAWLER_ALLOW_NETWORKS", "10.0.0.0/8,fd00::/8 192.0.2.1")
    assert settings.allow_networks() == ("10.0.0.0/8", "fd00::/8", "192.0.2.1/32")
    monkeypatch.setenv("CRAWLER_ALLOW_NETWORKS", "10.0.0.1/8")
    with pytest.raises(settings.SettingInvalidError, match=r"CRAWLER_ALLOW_NETWORKS: .*write networks as"):
        settings.allow_networks()


def test_the_user_agent_says_whom_to_write_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.user_agent().startswith("CrawlerFleet/")
    assert settings.user_agent().endswith(" (+no contact given)")
    monkeypatch.setenv("CRAWLER_CONTACT", "https://example.org/bot")
    assert settings.user_agent().endswith(" (+https://example.org/bot)")


def test_names_of_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    assert settings.host_name()
    assert settings.release() == "checkout"
    monkeypatch.setenv("CRAWLER_HOST", "paris")
    monkeypatch.setenv("CRAWLER_RELEASE", "abc")
    monkeypatch.setenv("CRAWLER_STATE_DIR", "/var/lib/crawler")
    assert (settings.host_name(), settings.release(), settings.state_dir()) == (
        "paris",
        "abc",
        Path("/var/lib/crawler"),
    )


def test_requests_are_kept_for_90_days_unless_other_days_are_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CRAWLER_REQUESTS_DAYS", raising=False)
    assert settings.requests_days() == 90
    monkeypatch.setenv("CRAWLER_REQUESTS_DAYS", "30")
    assert settings.requests_days() == 30
