"""Somebody who has not the key edits a store's marker: with the key given, nothing is done with it.

Believed, a marker that says "not encrypted" has the guest's data written in the clear.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fleece
from fleece.store.names import MARKER
from tests.engine.scene import GUEST, INTACT, Json, Mutation, Scene, daemon
from tests.golden.make import KEY_FILE, PASSPHRASE
from tests.rig import images
from tests.rig.disk import Disk

BOTH = fleece.StoreWishes(fleece.HashChoice.BLAKE3, encrypt=True, mode=0o640)

Edit = Callable[[Json], object]
"""Changes what a marker says; what it gives is put there instead, or what it was given if None."""


def _in_the_clear(said: Json) -> None:
    said["encryption"] = None


def _another_hash(said: Json) -> None:
    said["hash"] = "xxh3-128"


def _another_id(said: Json) -> None:
    said["id"] = "0" * 32


def _no_proof(said: Json) -> None:
    del said["mac"]


def _no_key(said: Json) -> None:
    del said["key"], said["mac"]
    said["encryption"], said["hash"] = None, "blake3"


def _readable_by_all(said: Json) -> None:
    said["mode"] = "0644"


def _one_word_more(said: Json) -> None:
    said["compression"] = "none"


def _a_key_of_another_secret(said: Json) -> None:
    said["key"]["salt"] = "00" * 16


EDITS = (
    _in_the_clear,
    _another_hash,
    _another_id,
    _no_proof,
    _no_key,
    _readable_by_all,
    _one_word_more,
    _a_key_of_another_secret,
)


def _edited(marker: bytes, edit: Edit) -> bytes:
    said = json.loads(marker)
    instead = edit(said)
    return json.dumps(said if instead is None else instead).encode()


def _canonical(said: object) -> str:
    """Equal only for the same JSON: in Python, True == 1 == 1.0."""
    return json.dumps(said, sort_keys=True)


# ---- every field ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with every field that a marker can have."""
    return Path(fleece.init(tmp_path_factory.mktemp("marked") / "store", KEY_FILE, BOTH).where)


@pytest.fixture(scope="module")
def genuine(store: Path) -> bytes:
    return (store / MARKER).read_bytes()


def _refused(store: Path, marker: bytes, secret: fleece.Secret = KEY_FILE) -> str:
    """Check that a store with this marker cannot be opened with the key; gives why."""
    (store / MARKER).write_bytes(marker)
    with pytest.raises((fleece.StoreError, fleece.UsageError)) as caught:
        fleece.open_store(store, secret)
    return str(caught.value)


def _places(said: object, way: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield way
    if isinstance(said, dict):
        for name in said:
            yield from _places(said[name], (*way, name))


def _put(said: Any, way: tuple[Any, ...], value: object) -> Any:
    """What is said, with another value at a place; `...` removes it."""
    if not way:
        return value
    made = copy.deepcopy(said)
    inner = made
    for name in way[:-1]:
        inner = inner[name]
    if value is ...:
        del inner[way[-1]]
    else:
        inner[way[-1]] = value
    return made


_OTHERS: tuple[object, ...] = (
    ...,
    None,
    True,
    False,
    0,
    1,
    2,
    18,
    -1,
    1.0,
    10**400,
    "",
    "0",
    "\ud800",
    "0600",
    "0644",
    "0666",
    "xxh3-128",
    "blake3",
    "blake3-keyed",
    "aes-256-gcm",
    "passphrase",
    "key_file",
    "00" * 16,
    "AB" * 16,
    "00" * 32,
    "zz" * 32,
    [],
    {},
    [1],
    {"id": "0" * 32},
)


def test_every_field_counts(store: Path, genuine: bytes) -> None:
    said = json.loads(genuine)
    places = [way for way in _places(said) if way]
    assert {*map(len, places)} == {1, 2}
    tried = 0
    for way in places:
        for value in _OTHERS:
            edited = _put(said, way, value)
            if _canonical(edited) != _canonical(said):
                _refused(store, json.dumps(edited).encode())
                tried += 1
    assert tried >= len(places) * (len(_OTHERS) - 1)
    (store / MARKER).write_bytes(genuine)
    fleece.open_store(store, KEY_FILE)


def test_no_case_of_a_digit_is_another_way_to_say_it(store: Path, genuine: bytes) -> None:
    said = json.loads(genuine)
    for way in (("id",), ("mac",), ("key", "salt"), ("key", "id")):
        text = said[way[0]] if len(way) == 1 else said[way[0]][way[1]]
        for other in (text.upper(), f" {text}", f"{text} ", text[:8] + " " + text[8:]):
            _refused(store, json.dumps(_put(said, way, other)).encode())


@pytest.mark.parametrize("name", ["encryption", "hash", "id", "key", "mode", "mac", "version"])
def test_a_name_that_is_there_twice_is_refused(name: str, store: Path, genuine: bytes) -> None:
    """Which of the two counts, readers could see differently."""
    text = genuine.decode().strip()
    again = json.dumps({name: json.loads(genuine)[name]})[1:-1]
    for twice in (f"{{{again}, {text[1:]}", f"{text[:-1]}, {again}}}"):
        assert "twice" in _refused(store, twice.encode())
    inner = text.replace('"cost": 0', '"cost": 0, "cost": 0')
    assert inner != text
    assert "twice" in _refused(store, inner.encode())


@pytest.mark.parametrize(
    "marker",
    [
        b"",
        b"null",
        b"{}",
        b"[" * 4000,
        b'{"a":' * 800,
        b'{"format": "fleece store", "version": NaN}',
        b'{"format": "fleece store", "version": ' + b"1" * 4000 + b"}",
        b" " * 5000,
        b"\x00" * 4096,
        b"\xff\xfe{",
    ],
    ids=lambda marker: repr(marker[:12]),
)
def test_nonsense_is_refused(marker: bytes, store: Path, genuine: bytes) -> None:
    assert "cannot be read" in _refused(store, marker)
    deep = genuine.decode().strip()[:-1] + ', "more": ' + "[" * 1500 + "]" * 1500 + "}"
    _refused(store, deep.encode())
    _refused(store, genuine + b" " * 5000)


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=70)
    | st.sampled_from([value for value in _OTHERS if isinstance(value, str)]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_no_edit_is_believed(data: st.DataObject, store: Path, genuine: bytes) -> None:
    said = json.loads(genuine)
    edited = said
    for _ in range(data.draw(st.integers(1, 3))):
        places = [*_places(edited)]
        way = data.draw(st.sampled_from(places))
        value = data.draw(_JSON)
        if isinstance(value, dict) and isinstance(edited, dict) and data.draw(st.booleans()):
            way, value = (), edited | value
        edited = _put(edited, way, value)
    if _canonical(edited) != _canonical(said):
        _refused(store, json.dumps(edited).encode())


def test_a_marker_of_another_store_is_none_of_this_one(tmp_path: Path, genuine: bytes) -> None:
    other = fleece.Secret.of_passphrase("x")
    theirs = Path(fleece.init(tmp_path / "theirs", other, BOTH).where) / MARKER
    plain = Path(fleece.init(tmp_path / "plain").where) / MARKER
    (tmp_path / "store").mkdir()
    assert "not the key" in _refused(tmp_path / "store", theirs.read_bytes())
    assert "this store has none" in _refused(tmp_path / "store", plain.read_bytes())
    mixed = json.loads(genuine) | {"id": json.loads(plain.read_bytes())["id"]}
    assert "was altered" in _refused(tmp_path / "store", json.dumps(mixed).encode())


@pytest.mark.parametrize(
    ("way", "value"),
    [
        (("key", "cost"), 13),
        (("key", "cost"), 19),
        (("key", "cost"), 60),
        (("key", "cost"), 14),
        (("key", "cost"), 18),
        (("key", "derivation"), "key_file"),
        (("key",), {"derivation": "key_file", "cost": 0, "salt": "0" * 32, "id": "0" * 32}),
        (("key", "salt"), "0" * 32),
        (("encryption",), None),
    ],
    ids=str,
)
def test_a_passphrase_is_stretched_as_it_was(
    way: tuple[str, ...], value: object, tmp_path: Path
) -> None:
    """And a cost that would take all memory is refused before it is tried."""
    path = Path(fleece.init(tmp_path / "store", PASSPHRASE, BOTH).where)
    said = json.loads((path / MARKER).read_bytes())
    _refused(path, json.dumps(_put(said, way, value)).encode(), PASSPHRASE)


# ---- every verb ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """A guest with two points in an encrypted store."""
    folder = tmp_path_factory.mktemp("marker")
    (folder / "key").write_bytes(bytes(range(32)))
    with daemon(folder, Disk(images.random_image(folder / "d0.qcow2", 1 << 20, 1), "d0")) as made:
        made.init("--hash", "blake3", "--encrypt", "--key-file", folder / "key")
        for _ in range(2):
            made.backup("--key-file", folder / "key").succeeded()
        yield made


def _tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MARKER
    }


@pytest.fixture
def key(scene: Scene) -> Iterator[tuple[str, ...]]:
    """The words that name the key; the marker is put back afterwards, and nothing has changed."""
    before, tree, bitmaps = (scene.store / MARKER).read_bytes(), _tree(scene.store), scene.bitmaps()
    yield "--key-file", str(scene.folder / "key")
    (scene.store / MARKER).write_bytes(before)
    assert (_tree(scene.store), scene.bitmaps()) == (tree, bitmaps)
    scene.nothing_left()


def _edit(scene: Scene, edit: Edit) -> None:
    marker = scene.store / MARKER
    marker.write_bytes(_edited(marker.read_bytes(), edit))


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__[1:])
def test_no_backup_goes_into_a_store_whose_marker_was_edited(
    edit: Edit, scene: Scene, key: tuple[str, ...]
) -> None:
    """Nor is the guest's QEMU even asked: where there is none, the error is the same."""
    _edit(scene, edit)
    ran = scene.backup(*key)
    assert ran.code in (2, 5), ran
    assert str(scene.store) in ran.result["error"]
    nobody = ("backup", "qmp:/nobody", scene.store, "--guest", GUEST, *key, "--json")
    assert INTACT.run(*nobody).result["error"] == ran.result["error"]


_VERBS = """
import json, sys
from fleece.cli.main import main
for words in json.loads(sys.argv[1]):
    print("code", main([*words, "--json"]), *words, flush=True)
"""


@pytest.mark.parametrize("edit", [_in_the_clear, _no_key], ids=lambda edit: edit.__name__[1:])
@pytest.mark.parametrize("way", ["option", "environment"])
def test_no_verb_takes_a_store_whose_marker_was_edited(
    edit: Edit,
    way: str,
    scene: Scene,
    key: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    store, target = str(scene.store), str(tmp_path / "out")
    verbs = (
        ("list", store),
        ("status", store),
        ("verify", store),
        ("verify", store, "--max-age", "1d"),
        ("import", store),
        ("restore", store, "latest", "d0", target),
        ("restore", store, "latest", "d0", target, "--partial"),
        ("restore", store, "latest", "d0", target, "--as-chain"),
        ("serve", store, "latest"),
        ("boot-test", store, "latest"),
        ("files", store, "latest", "d0", "ls"),
        ("diff", store, "latest", "latest"),
        ("map", store, "latest", "d0"),
        ("merge", store, "latest"),
        ("prune", store, "--keep-last", "1"),
        ("pin", store, "latest"),
        ("unpin", store, "latest"),
        ("audit", scene.source, store, "--guest", GUEST, "--scratch", str(scene.scratch)),
        ("bitmap", scene.source, store, "--guest", GUEST),
        ("backup", scene.source, store, "--guest", GUEST, "--scratch", str(scene.scratch)),
        ("init", target, "--like", store),
    )
    _edit(scene, edit)
    if way == "environment":
        monkeypatch.setenv("FLEECE_KEY_FILE", key[1])
        key = ()
    ran = INTACT.script(_VERBS, json.dumps([[*words, *key] for words in verbs])).wait()
    codes = [line.split() for line in ran.out.splitlines() if line.startswith("code ")]
    assert [words[2] for words in codes] == [words[0] for words in verbs], ran
    assert {words[2] for words in codes if words[1] not in ("2", "5")} == set(), ran
    said = [line for line in ran.out.splitlines() if line.startswith("{")]
    assert len(said) == len(verbs)
    for line in said:
        error = json.loads(line)["error"]
        assert "was altered" in error or "this store has none" in error
    assert not (tmp_path / "out").exists()


FAULT = Mutation(
    "a marker that is believed",
    (
        (
            "store/marker.py",
            "if self.mac is None or not hmac.compare_digest(",
            "if not (lambda *_: 1)(",
        ),
    ),
)


def test_this_check_can_fail(scene: Scene, tmp_path: Path) -> None:
    """Without it, an edited marker has the guest's data written in the clear."""
    key = "--key-file", str(scene.folder / "key")
    scene.init("--hash", "blake3", "--encrypt", *key, store=tmp_path / "store")
    marker = tmp_path / "store" / MARKER
    marker.write_bytes(_edited(marker.read_bytes(), _in_the_clear))
    words = scene.words(*key, store=tmp_path / "store")
    FAULT.engine(tmp_path).run(*words).succeeded()
    (delta,) = (tmp_path / "store").rglob("*.fleece")
    with fleece.open_delta(delta, KEY_FILE) as made:
        assert made.protection is not None
        assert not made.protection.encrypted
    INTACT.run(*words).failed(5, "was altered")


def test_a_store_whose_marker_is_lost_goes_on_in_a_new_one(tmp_path: Path) -> None:
    """As docs/troubleshooting.rst says."""
    (tmp_path / "key").write_bytes(bytes(range(32)))
    key = "--key-file", str(tmp_path / "key")
    image = images.random_image(tmp_path / "d0.qcow2", 1 << 20, 1)
    with daemon(tmp_path, Disk(image, "d0")) as scene:
        scene.init("--encrypt", *key)
        scene.backup(*key).succeeded()
        (scene.store / MARKER).unlink()
        (delta,) = scene.store.rglob("*.fleece")
        scene.backup(*key).failed(5, "not a fleece store")
        scene.init("--like", delta, *key, store=tmp_path / "new")
        (guest,) = (item for item in scene.store.iterdir() if item.is_dir())
        guest.rename(tmp_path / "new" / guest.name)
        INTACT.run("verify", tmp_path / "new", *key).succeeded()
        ran = scene.backup(*key, store=tmp_path / "new").succeeded()
        assert ran.result["mode"] == "incremental"
        assert len(ran.named("plan")) == 1
        INTACT.run("verify", tmp_path / "new", *key).succeeded()
