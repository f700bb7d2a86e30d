"""What belongs to a job, and what a person is told who describes one wrongly."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from crawler import urls
from crawler.job import MAX_CHAIN, Job, JobError, Scope

PAGE = "http://www.example.co.uk/docs/page"


def refused(url: str, found_on: str = PAGE, depth: int = 1, traps: bool = True, **scope: Any) -> Any:
    refusal = Job(name="j", traps=traps, scope=scope).refusal(url, found_on, depth)
    return refusal and tuple(refusal)


@pytest.mark.parametrize(
    ("scope", "url", "reason"),
    [
        ({"kind": "host"}, "http://www.example.co.uk/other", None),
        ({"kind": "host"}, "https://www.example.co.uk/other", None),
        ({"kind": "host"}, "http://shop.example.co.uk/", "other host"),
        ({"kind": "host"}, "http://www.example.co.uk:8080/", "other host"),
        ({"kind": "domain"}, "http://shop.example.co.uk/", None),
        ({"kind": "domain"}, "http://example.co.uk:8080/", None),
        ({"kind": "domain"}, "http://other.co.uk/", "other domain"),
        ({"kind": "prefix", "prefixes": [PAGE[:-4]]}, "http://www.example.co.uk/docs/x", None),
        ({"kind": "prefix", "prefixes": ["http://a.test/", PAGE[:-4]]}, "http://a.test/x", None),
        ({"kind": "prefix", "prefixes": [PAGE[:-4]]}, "http://www.example.co.uk/blog/", "outside the prefixes"),
        ({"kind": "any"}, "http://other.test/", None),
        ({"kind": "any", "allow": ["/news/", r"\?p="]}, "http://other.test/?p=1", None),
        ({"kind": "any", "allow": ["/news/", r"\?p="]}, "http://other.test/news/", None),
        ({"kind": "any", "allow": ["/news/"]}, "http://other.test/blog/", "no allow pattern matches"),
        ({"kind": "any", "deny": ["/x$", "/y$"]}, "http://other.test/y", "deny pattern /y$"),
        ({"kind": "any", "allow": ["/y"], "deny": ["/y$"]}, "http://other.test/y", "deny pattern /y$"),
    ],
)
def test_scopes(scope: dict[str, Any], url: str, reason: str | None) -> None:
    assert refused(url, **scope) == (reason and ("scope", f"scope: {reason}"))


def test_how_far_a_job_goes() -> None:
    job = Job(name="j", depth=3)
    assert job.refusal(PAGE, PAGE, 3) is None
    assert job.refusal(PAGE, PAGE, 4) == ("depth", "depth")
    assert job.refuses(PAGE, PAGE, 4) == "depth"


def test_no_chain_of_links_is_endless() -> None:
    assert refused(PAGE, depth=MAX_CHAIN) is None
    assert refused(PAGE, depth=MAX_CHAIN + 1) == ("trap", f"trap: more than {MAX_CHAIN} links from a seed")
    assert refused(PAGE, depth=MAX_CHAIN + 1, traps=False) is None
    looped = f"{PAGE}/a/a/a/a/"
    assert (refused(looped) or ("",))[0] == "trap"
    assert refused(looped, traps=False) is None


def test_addresses_are_domains_of_their_own() -> None:
    hosts = ("[2001:db8::1]", "[2001:db8::2]", "192.0.2.1", "192.0.2.2", "192.0.2.1:8080")
    assert [urls.domain_of(host) for host in hosts] == [*hosts[:4], "192.0.2.1"]
    scope = {"kind": "domain"}
    assert refused("http://[2001:db8::2]/", "http://[2001:db8::1]/", **scope) == ("scope", "scope: other domain")


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ("name: j\nmax_page: 5", r"job.yml: max_page: Extra inputs are not permitted"),
        ("name: j\nscope: {kind: host, alow: [x]}", r"job.yml: scope.alow: Extra inputs"),
        ("name: j\ndelay: -1", r"job.yml: delay: .*greater than or equal to 0 \(given: -1\)"),
        ("name: j\nscope: {kind: prefix}", r"kind 'prefix' needs 'prefixes'"),
        ("name: j\nscope: {deny: ['(']}", r"is no regular expression"),
        ("name: j\nscope: {deny: ['a(?=b)']}", r"'a\(\?=b\)' is no regular expression: RE2 knows no look-around"),
        (f"name: j\nlast: ['{'a' * 2001}']", r"last.0: String should have at most 2000 characters"),
        (
            "name: j\nmax_pages_per_domain: 0",
            r"job.yml: max_pages_per_domain: .*greater than or equal to 1 \(given: 0\)",
        ),
        (
            "name: j\nmax_pages_per_prefix: {/forum/: 5}",
            r"'/forum/' is no URL prefix.*such as 'https://example.org/forum/'",
        ),
        (
            "name: j\nmax_pages_per_prefix: {'http://a.test/': 0}",
            r"job.yml: max_pages_per_prefix.http://a.test/: .*equal to 1",
        ),
        ("name: j\nmax_pages_per_prefix: 500", r"job.yml: max_pages_per_prefix: .*valid dictionary \(given: 500\)"),
        ("name: '../j'", r"job.yml: name: "),
        ("depth: 1", r"job.yml: name: Field required"),
        ("- name: j", r"a job is a mapping"),
        ("name: [", r"job.yml: "),
    ],
)
def test_a_wrong_description_names_the_field(tmp_path: Path, given: str, complaint: str) -> None:
    file = tmp_path / "job.yml"
    file.write_text(given)
    with pytest.raises(JobError, match=complaint):
        Job.from_file(file)


def test_budgets_of_prefixes_are_told_as_urls_are_known(tmp_path: Path) -> None:
    file = tmp_path / "job.yml"
    file.write_text(
        "name: j\nmax_pages_per_prefix: {'HTTPS://Example.org:443/Forum/': 500, 'https://example.org': 900}"
    )
    job = Job.from_file(file)
    assert job.max_pages_per_prefix == {"https://example.org/Forum/": 500, "https://example.org/": 900}
    assert job.budgets("https://example.org/Forum/1") == ["https://example.org/Forum/", "https://example.org/"]
    assert job.budgets("https://example.org/forum/1") == ["https://example.org/"]
    assert Job.model_validate_json(job.model_dump_json()) == job
    assert job.limited
    assert not Job(name="j").limited


@pytest.mark.parametrize("pattern", ["(a+)+$", "(a|a)*b", "(.*a){20}$"])
def test_no_pattern_holds_a_worker_up(pattern: str) -> None:
    """S9: such a pattern, and one URL, froze worker after worker for 180 s."""
    url = f"http://a.test/{'a' * 2000}!"
    job = Job(name="j", scope=Scope(deny=(pattern,)), first=(pattern,), strip_parameters=(pattern,))
    began = time.process_time()
    job.refuses(url, "http://a.test/", 1)
    job.turn(url)
    job.cleaned(f"{url}?{'a' * 2000}!=1")
    assert time.process_time() - began < 1
