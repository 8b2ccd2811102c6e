"""A configuration is whole, makes sense, and is told about with the file and the line."""

from __future__ import annotations

import tomllib
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fleece
from fleece.errors import UsageError
from fleece.fleet import config as config_module
from fleece.fleet.config import Config, Limits, load
from fleece.fleet.document import line_of, schema
from fleece.fleet.example import commented
from fleece.fleet.hooks import Hooks
from fleece.fleet.hours import Hours

_STORE = '[store.main]\nplace = "/backup"\n'
_NOTICE = "[notice.n]\n"
_GUEST = '[[guest]]\nname = "web1"\nsource = "libvirt:web1"\nstore = "main"\n'


def _write(folder: Path, text: str, name: str = "fleece.toml") -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o644)
    return path


def _loaded(folder: Path, text: str) -> Config:
    return load(_write(folder, text))


def test_the_smallest_one_is_enough(tmp_path: Path) -> None:
    config = _loaded(tmp_path, _STORE + "keep = { last = 3, daily = 7 }\n" + _GUEST)
    (guest,) = config.guests
    assert (guest.name, guest.source, guest.store.place) == ("web1", "libvirt:web1", "/backup")
    assert guest.keep == fleece.KeepRules(last=3, daily=7)
    assert guest.options == fleece.SourceOptions()
    assert guest.backup == fleece.BackupOptions(guest="web1")


def test_what_a_guest_says_is_how_it_is_backed_up(tmp_path: Path) -> None:
    more = (
        'freeze = "require"\nscratch = "/var/tmp/s"\nscratch-limit = "20G"\naudit = "1%"\n'
        'rate = "50M"\nlevel = 3\njobs = 2\ndisks = ["vda"]\ntransport = "push"\nevery = "1d"\n'
        'hooks = { before = ["true", "now"], limit = 5 }\n'
    )
    host = '[host.one]\nconnect = "qemu:///system"\nat-once = 1\n'
    (guest,) = _loaded(tmp_path, _STORE + host + _GUEST + more).guests
    assert guest.options == fleece.SourceOptions(
        scratch=Path("/var/tmp/s"),
        scratch_limit=20 << 30,
        require_freeze=True,
        freeze=True,
    )
    assert [host.connect for host in guest.hosts] == ["qemu:///system"]
    assert guest.hooks == Hooks(("true", "now"), limit=5)
    assert guest.backup == fleece.BackupOptions(
        guest="web1",
        disks=("vda",),
        level=3,
        workers=2,
        audit=0.01,
        transport=fleece.TransportWish.PUSH,
        rate=50 << 20,
    )
    assert guest.every == fleece.Duration(days=1)


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("[store.main\n", 1, "is no TOML"),
        (_STORE + "kep = { last = 3 }\n", 3, "no key 'kep' here; did you mean 'keep'?"),
        (_STORE + 'keep = { last = "3" }\n', 3, "'last' must be a whole number"),
        (_STORE + "keep = {}\n", 3, "'keep' is empty"),
        (_STORE + "keep = { last = 0 }\n", 3, "no rule keeps anything"),
        (_STORE + 'keep = { within = "soon" }\n', 3, "must be written like '7d' or"),
        (_STORE + 'verify = { part = "0%" }\n', 3, "a part of nothing"),
        (
            _STORE + 'copy-to = [\n  "ofsite",\n]\n[store.offsite]\nplace = "/b"\n',
            3,
            "did you mean",
        ),
        (_STORE + 'copy-to = ["main"]\n', 3, "not copied to itself"),
        (_STORE + 'key-file = "a"\npassphrase-file = "b"\n', 4, "not both"),
        ("[store.main]\n", 1, "'place' is missing"),
        (_STORE + "\n" + _GUEST.replace("main", "man"), 7, "no store 'man'; did you mean 'main'?"),
        (_STORE + _GUEST + 'freeze = "yes"\n', 7, "must be one of: no, try, require"),
        (_STORE + _GUEST + "level = 20\n", 7, "'level' must be 19 or less"),
        (_STORE + _GUEST + "jobs = 1.5\n", 7, "'jobs' must be a whole number"),
        (_STORE + _GUEST + 'host = "one"\n', 7, "no host 'one'; known are: here"),
        (_STORE + _GUEST + 'match = "libvirt:*"\n', 3, "'match' for several"),
        (_STORE + _GUEST + 'except = ["a"]\n', 7, "'except' has no effect"),
        (_STORE + _GUEST + 'tag = "a"\n', 7, "'tag' has no effect"),
        (_STORE + _GUEST + 'disks = ["a"]\nleave-out = ["b"]\n', 8, "which ones not"),
        (_STORE + _GUEST + "hooks = { limit = 3 }\n", 7, "have no effect"),
        (_STORE + _GUEST + 'hooks = { before = "a b" }\n', 7, "'before' must be a list"),
        (
            _STORE + _GUEST.replace("libvirt:web1", "qmp:/run/q") + 'host = "here"\n',
            7,
            "'host' has no effect",
        ),
        (_STORE + '[limits]\nwindows = ["22-6"]\n', 4, "must be written like '22:00-06:00'"),
        (_STORE + '[limits]\nrates = [{ hours = "08:00-09:00" }]\n', 4, "'rate' is missing"),
        (_STORE + '[[guest]]\nname = "a"\nstore = "main"\n', 4, "'name' without 'source'"),
        (_STORE + '[[guest]]\nstore = "main"\n', 3, "'match' for several"),
        (_STORE + _GUEST + "\n" + _GUEST, 8, "guest 'web1' is in"),
        (_STORE + "[host.a]\n[host.b]\n" + _GUEST, 5, "there are several hosts; add a line like"),
        (_STORE + "[limits]\nat-once = 0\n", 4, "'at-once' must be 1 or more"),
        (_NOTICE, 1, "a notice has one of: command, web-hook, mail, ping"),
        (_NOTICE + 'command = ["a"]\nping = { url = "http://a" }\n', 3, "a notice has one of"),
        (_NOTICE + 'on = ["damage"]\nping = { url = "http://a" }\n', 2, "'on' has no effect"),
        (_NOTICE + 'ping = { url = "http://a", url-file = "b" }\n', 2, "one of: url, url-file"),
        (_NOTICE + 'web-hook = { url = "file:///a" }\n', 2, "begins with none of: https://"),
        (_NOTICE + 'web-hook = { url = "https://a", form = "matrix" }\n', 2, "a 'token-file'"),
        (_NOTICE + 'mail = { to = ["a"], user = "b" }\n', 2, "'user' and 'password-file'"),
        (_NOTICE + 'mail = { to = ["a b"] }\n', 2, "must be written like 'root@example.org'"),
        (_NOTICE + 'mail = { to = ["a"], server = "mail" }\n', 2, "begins with none of: smtps://"),
        (
            _NOTICE + 'mail = { to = ["a"], server = "smtp://a", user = "b", '
            'password-file = "c" }\n',
            2,
            "by smtps:// or starttls:// alone",
        ),
        (_STORE + 'x = """\na\n"""\n', 3, "no key 'x'"),
        (_STORE + 'guest = "web1"\n', 3, "no key 'guest'"),
        ('guest = "web1"\n', 1, "'guest' must be a list"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(
    text: str, line: int, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        _loaded(tmp_path, text)
    assert str(caught.value).startswith(f"{tmp_path}/fleece.toml:{line}: "), caught.value
    assert said in str(caught.value)


def test_a_line_is_told_of_the_file_that_has_it(tmp_path: Path) -> None:
    """And what is in several files is one configuration."""
    path = _write(tmp_path, _STORE + _GUEST)
    _write(tmp_path, _GUEST.replace("web1", "web2"), "conf.d/10-more.toml")
    _write(tmp_path, "nonsense", "conf.d/README")
    assert [guest.name for guest in load(path).guests] == ["web1", "web2"]
    for text, said in (
        ('\n[store.main]\nplace = "/other"\n', f"store 'main' is in {path}:1, too"),
        ("\n" + _GUEST, f"guest 'web1' is in {path}:3, too"),
    ):
        other = _write(tmp_path, text, "conf.d/20-again.toml")
        with pytest.raises(UsageError) as caught:
            load(path)
        assert str(caught.value).startswith(f"{other}:2: {said}")


def test_a_file_that_others_could_write_is_not_believed(tmp_path: Path) -> None:
    path = _write(tmp_path, _STORE + _GUEST)
    for mode in (0o664, 0o646, 0o666):
        path.chmod(mode)
        with pytest.raises(UsageError, match=r"could be written by somebody else.*chmod go-w"):
            load(path)


_MONDAY = datetime(2026, 11, 30, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "begin", "end"),
    [
        ("08:00-18:30", "0 8:00", "0 18:30"),
        ("Mon 22:00-06:00", "0 22:00", "1 6:00"),
        ("Sun 22:00-06:00", "6 22:00", "7 6:00"),
        ("Wed-Thu 00:00-00:00", "2 0:00", "4 0:00"),
        ("Sat-Sun 12:00-12:00", "5 12:00", "7 12:00"),
        ("Sun-Mon 00:00-00:00", "6 0:00", "8 0:00"),
    ],
)
def test_hours_are_those_from_their_begin_until_their_end(text: str, begin: str, end: str) -> None:
    def moment(word: str) -> datetime:
        days, _, clock = word.partition(" ")
        hour, minute = map(int, clock.split(":"))
        return _MONDAY + timedelta(days=int(days), hours=hour, minutes=minute)

    hours, minute = Hours.parse(text), timedelta(minutes=1)
    assert [hours.hold(moment(begin) + nth * minute) for nth in (-1, 0)] == [False, True]
    assert [hours.hold(moment(end) + nth * minute) for nth in (-1, 0)] == [True, False]


def test_the_least_of_a_guests_rate_and_the_hours_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = ((Hours.parse("Mon 08:00-18:00"), 20), (Hours.parse("08:00-20:00"), 50))
    for hour, own, least in ((9, None, 20), (9, 10, 10), (19, 100, 50), (21, 30, 30)):
        moment = _MONDAY.replace(hour=hour)
        monkeypatch.setattr(config_module, "by_the_clock", lambda moment=moment: moment)
        assert Limits(rates=rates).rate(own) == least
    assert Limits(rates=rates).rate(None) is None


@pytest.mark.parametrize("data", [b"\xff", b'[store.main]\nplace = "\xe4"\n'])
def test_a_file_that_is_no_text_is_refused(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "fleece.toml"
    path.write_bytes(data)
    path.chmod(0o600)
    line = 1 + data.count(b"\n", 0, len(data) - 2)
    with pytest.raises(UsageError, match=rf"fleece.toml:{line}: is not UTF-8"):
        load(path)


def test_a_file_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"No such file"):
        load(tmp_path / "missing.toml")
    with pytest.raises(UsageError, match=r"is no regular file|Is a directory"):
        load(tmp_path)


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(schema())


def test_every_key_is_explained_and_has_an_example_that_is_right() -> None:
    """What the example says, without its signs of comment, is held against the schema."""
    whole = schema()
    for name, title in (
        ("store", "store.x"),
        ("guest", "[guest]"),
        ("host", "host.x"),
        ("notice", "notice.x"),
    ):
        for key, said in whole["$defs"][name]["properties"].items():
            assert said.get("description") or whole["$defs"][key]["description"], key
        lines = iter(commented(whole))
        assert any(line.startswith(f"# [{title.replace('.x', '.NAME')}]") for line in lines)
        keys = []
        for line in lines:
            if not line:
                break
            keys.append(line.removeprefix("#   "))
        table = tomllib.loads("\n".join(key for key in keys if " = " in key and key[0] != "'"))
        assert table.keys() == whole["$defs"][name]["properties"].keys()
        validator = jsonschema.Draft202012Validator(
            {"$ref": f"#/$defs/{name}", "$defs": whole["$defs"]}
        )
        table.pop("passphrase-file", None)
        assert [error.message for error in validator.iter_errors(table)] == []


def test_the_manual_explains_every_key_as_the_schema_does() -> None:
    page = Path(__file__).parents[2] / "docs/reference/config.rst"
    told = " ".join(page.read_text().split())
    for shape in schema()["$defs"].values():
        for key, said in shape.get("properties", {}).items():
            assert f"``{key}``" in told
            assert said.get("description", "") in told, key


def test_the_example_is_a_configuration(tmp_path: Path) -> None:
    config = _loaded(tmp_path, "\n".join(commented(schema())))
    assert [guest.name for guest in config.guests] == ["web1"]


_KEYS = st.sampled_from("abc")
_VALUES = st.one_of(
    st.integers(0, 9).map(str),
    st.just('"""\nx = 1\n[b]\n"""'),
    st.just("[\n  1,\n\n  2, # [c]\n]"),
    st.just("{ a = 1 }"),
)


@st.composite
def _texts(draw: st.DrawFn) -> tuple[str, dict[tuple[str | int, ...], int]]:
    """A text, and the line of each key in it."""
    lines: list[str] = []
    where: dict[tuple[str | int, ...], int] = {}
    for number in range(draw(st.integers(0, 4))):
        head: tuple[str | int, ...] = ("list", number)
        where.setdefault(("list",), len(lines) + 1)
        where[head] = len(lines) + 1
        lines.append("[[list]]")
        for key in draw(st.lists(_KEYS, unique=True)):
            lines += [""] * draw(st.integers(0, 2))
            where[(*head, key)] = len(lines) + 1
            lines += f"{key} = {draw(_VALUES)}".split("\n")
    return "\n".join(lines), where


@given(_texts())
def test_each_key_is_found_in_the_line_that_begins_it(
    given: tuple[str, dict[tuple[str | int, ...], int]],
) -> None:
    text, where = given
    assert {keys: line_of(text, keys) for keys in where} == where


_PAGES = sorted((Path(__file__).parents[2] / "docs/howto").glob("*.rst"))


def _blocks(page: Path) -> list[str]:
    """The configurations that a page shows."""
    found: list[list[str]] = [[]]
    for line in page.read_text().splitlines():
        if line.startswith("    ") or not line:
            found[-1].append(line[4:])
        elif found[-1]:
            found.append([])
    texts = ["\n".join(lines).strip() for lines in found]
    return [text for text in texts if text.startswith(("[store.", "[[guest]]", "[host."))]


def test_what_the_manual_shows_is_a_configuration(tmp_path: Path) -> None:
    whole = [(page.name, text) for page in _PAGES for text in _blocks(page) if "[store." in text]
    assert {"three-hosts.rst", "nas.rst", "s3-locked.rst", "second-site.rst"} <= {
        n for n, _ in whole
    }
    for name, text in whole:
        assert _loaded(tmp_path, text).guests, name
