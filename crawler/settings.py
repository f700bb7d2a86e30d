"""The settings of a process: its name, its release, and the addresses of broker and database.

On a host systemd gives the plain settings in the environment (``/etc/crawler/crawler.env``) and the secrets as files
in ``$CREDENTIALS_DIRECTORY``; on the control node the playbooks leave the broker's address in ``.fleet/<fleet>/``.
An environment variable ``CRAWLER_<NAME>`` wins over both, for tests and by-hand runs.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from pathlib import Path

from crawler import __version__

PROJECT = Path(__file__).resolve().parent.parent


class SettingMissingError(RuntimeError):
    """A setting that is not there; the message says where it should come from."""


class SettingInvalidError(RuntimeError):
    """A setting that cannot be used; the message names it, its value and the remedy."""


def _secret(name: str) -> str | None:
    """The setting `name`: from ``CRAWLER_<NAME>``, ``CRAWLER_<NAME>_FILE`` or systemd's credentials, in this order."""
    if value := os.environ.get(f"CRAWLER_{name.upper()}"):
        return value
    places = [os.environ.get(f"CRAWLER_{name.upper()}_FILE")]
    if credentials := os.environ.get("CREDENTIALS_DIRECTORY"):
        places.append(f"{credentials}/{name}")
    for place in places:
        if place and Path(place).is_file():
            return Path(place).read_text().strip()
    return None


def broker_url(fleet: str | None = None) -> str:
    """AMQP address of the broker, password included.

    On the control node `fleet` picks one of several; without it the fleet deployed last is meant.
    """
    if not fleet and (url := _secret("broker_url")):
        return url
    left_by_deploy = PROJECT / ".fleet" / (fleet or "current") / "broker_url"
    if left_by_deploy.is_file():
        return left_by_deploy.read_text().strip()
    raise SettingMissingError(
        f"No broker known{f' for the fleet {fleet!r}' if fleet else ''}. Run `ansible-playbook deploy.yml` first: it "
        "leaves the connection in .fleet/. Or set CRAWLER_BROKER_URL=amqp://user:password@host:5672/vhost, or crawl "
        "without any server: --local."
    )


def use_fleet(fleet: str | None) -> str:
    """Choose the broker of `fleet` (None: the fleet deployed last) for this process; returns its address."""
    os.environ["CRAWLER_BROKER_URL"] = url = broker_url(fleet)
    return url


def database_url() -> str:
    """SQLAlchemy address of the ledger, password included."""
    if url := _secret("database_url"):
        return url
    raise SettingMissingError(
        "No database known. On the frontier host run this as `sudo crawler …`; elsewhere set "
        "CRAWLER_DATABASE_URL=postgresql+psycopg://user:password@host/database."
    )


def without_password(url: str) -> str:
    """`url` as it may be shown to a person or a log."""
    return re.sub(r"(//[^:/@]*):[^@]*@", r"\1:***@", url)


def contact() -> str:
    """Where a site's owner can write to: part of the User-Agent."""
    return os.environ.get("CRAWLER_CONTACT", "no contact given")


def user_agent() -> str:
    """The User-Agent of every request: product, version and the operator's contact (RFC 9110, section 10.1.5)."""
    return f"{PRODUCT}/{__version__} (+{contact()})"


def requests_days() -> float:
    """Days for which the ledger keeps every request made."""
    return float(os.environ.get("CRAWLER_REQUESTS_DAYS") or REQUESTS_DAYS)


def cap(kind: str) -> tuple[int, float]:
    """Batches at once, and least seconds between two requests of one, for a `domain` or an `address`
    (frontier/caps.py)."""
    batches, delay = CAPS[kind]
    return int(_number(f"{kind}_batches", batches)), _number(f"{kind}_delay", delay)


def _number(name: str, default: float) -> float:
    given = os.environ.get(f"CRAWLER_{name.upper()}") or str(default)
    try:
        number = float(given)
    except ValueError:
        number = -1
    if not 0 <= number <= 3600:
        raise SettingInvalidError(f"CRAWLER_{name.upper()}={given!r} is no number from 0 to 3600")
    return number


def exempt_networks() -> tuple[str, ...]:
    """Networks, such as 192.0.2.0/24, whose hosts have no caps by domain and address: the operator's own, and those of
    hosters whose servers bear more."""
    return networks_of(os.environ.get("CRAWLER_EXEMPT_NETWORKS", ""), "CRAWLER_EXEMPT_NETWORKS")


def allow_networks() -> tuple[str, ...]:
    """Networks that are not public, or whose every port may be asked, and that are crawled all the same: the operator's
    own (worker/egress.py)."""
    return networks_of(os.environ.get("CRAWLER_ALLOW_NETWORKS", ""), "CRAWLER_ALLOW_NETWORKS")


def networks_of(text: str, origin: str) -> tuple[str, ...]:
    """The networks in a text, separated by spaces or commas. Raises SettingInvalidError, which names the `origin`."""
    try:
        return tuple(str(ipaddress.ip_network(network)) for network in re.split(r"[\s,]+", text.strip()) if network)
    except ValueError as error:
        raise SettingInvalidError(f"{origin}: {error}; write networks as 192.0.2.0/24") from None


def allow_ports() -> tuple[range, ...]:
    """Ports that may be asked besides 80 and 443 (worker/egress.py)."""
    given = os.environ.get("CRAWLER_ALLOW_PORTS", "")
    found = []
    for part in re.split(r"[\s,]+", given.strip()):
        first, dash, last = part.partition("-")
        numbers = [int(number) for number in (first, last if dash else first) if re.fullmatch("[0-9]{1,5}", number)]
        if part and (len(numbers) < 2 or not 1 <= numbers[0] <= numbers[1] <= 65535):
            raise SettingInvalidError(f"CRAWLER_ALLOW_PORTS: {part!r} is no port; write ports as 8443, 8000-8999")
        if part:
            found.append(range(numbers[0], numbers[1] + 1))
    return tuple(found)


def ceilings() -> tuple[float, int | None, int | None, frozenset[str] | None]:
    """How far any job may go (ceilings.py): least delay, most connections, largest body, hosts without robots.txt. What
    is not set is no ceiling."""
    connections, body = (os.environ.get(f"CRAWLER_MOST_{name}", "") for name in ("CONNECTIONS", "BODY"))
    for given in (connections, body):
        if not re.fullmatch("[0-9]{0,18}", given):
            raise SettingInvalidError(
                f"CRAWLER_MOST_CONNECTIONS and CRAWLER_MOST_BODY are whole numbers, not {given!r}"
            )
    hosts = os.environ.get("CRAWLER_WITHOUT_ROBOTS")
    without = None if hosts is None else frozenset(hosts.replace(",", " ").split())
    least = _number("least_delay", 0.0)
    return least, int(connections) if connections else None, int(body) if body else None, without


def caps_loopback() -> bool:
    """Whether loopback has caps as any other network has: for tests, whose servers are there."""
    return os.environ.get("CRAWLER_CAPS_LOOPBACK", "") == "1"


def state_dir() -> Path:
    """The folder for files that outlive this process, such as the archive."""
    return Path(os.environ.get("CRAWLER_STATE_DIR", "."))


def host_name() -> str:
    """This machine's name as the inventory spells it."""
    return os.environ.get("CRAWLER_HOST") or socket.gethostname()


def release() -> str:
    """Content hash of the code this process runs, as the release role named it."""
    return os.environ.get("CRAWLER_RELEASE", "checkout")


REQUESTS_DAYS = 90.0
CAPS = {"domain": (6, 0.25), "address": (6, 0.25)}
"""By kind: batches at once, and least seconds between two requests of one. Six is what a visitor's browser opens to one
host; at four requests a second in each a shared server, of however many names, gets 24 a second at most, and a large
site at the usual delay of a second is as quick as without caps."""
PRODUCT = "CrawlerFleet"
"""The product token that robots.txt groups are matched against (RFC 9309, section 2.2.1)."""
