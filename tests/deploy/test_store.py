"""A board's store: what is installed, what is refused with the reason, and how a board goes back."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from edge_sdk import Bundle
from edge_sdk.bundle import MANIFEST, WEIGHTS
from edge_sdk.deploy.chunks import CHUNK_BYTES, Offer, offer, read_chunk
from edge_sdk.deploy.install import Installation
from edge_sdk.deploy.record import BoardSettings, parse_version
from edge_sdk.deploy.signing import SIGNATURE, make_keys, read_keys, read_signatures, sign
from edge_sdk.deploy.store import SETTINGS, TRUSTED_KEYS, Store
from edge_sdk.errors import BundleError, BusyError, ConfigError, DeployError
from places import ROOT
from small_bundles import install, noise, runs, small_bundle, tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def one(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "one", "1.0", chunks=2)


@pytest.fixture
def two(tmp_path: Path) -> Bundle:
    return small_bundle(tmp_path / "two", "2.0", chunks=2)


def configure(store: Store, **settings: object) -> None:
    store.configure(msgspec.json.encode(settings), None)


def test_a_bundle_goes_into_the_slot_that_does_not_run_and_one_goes_back_to_the_other(
    store: Store, one: Bundle, two: Bundle
) -> None:
    with pytest.raises(DeployError, match="expected an active slot, found none"):
        store.active_bundle()
    install(store, one)
    assert (store.read().active, runs(store)) == ("a", "1.0")
    with pytest.raises(DeployError, match=r"The other slot: expected a bundle, found none"):
        store.roll_back()
    install(store, two)
    assert (store.read().active, runs(store)) == ("b", "2.0")
    store.roll_back()
    assert (store.read().active, runs(store)) == ("a", "1.0")
    store.roll_back()
    assert runs(store) == "2.0"


def test_only_two_bundles_stay(store: Store, tmp_path: Path) -> None:
    for version in ("1", "2", "3", "4"):
        install(store, small_bundle(tmp_path / version, version))
    assert sorted(slot.version for slot in store.read().slots.values()) == ["3", "4"]
    assert len(list(store.bundles.iterdir())) == 2
    assert not list(store.incoming.iterdir())


def test_only_what_is_not_there_is_missing(store: Store, one: Bundle, tmp_path: Path) -> None:
    assert install(store, one)[1] == 6  # three chunks of weights, and three small files
    content = one.file(WEIGHTS).read_bytes()
    altered = small_bundle(tmp_path / "x", "1.1", weights=content[:CHUNK_BYTES] + b"x" + content[CHUNK_BYTES + 1 :])
    assert install(store, altered)[1] == 2  # the graph and one chunk of weights
    same = small_bundle(tmp_path / "y", "1.2", weights=altered.file(WEIGHTS).read_bytes())
    assert install(store, same)[1] == 1
    linked = {path.stat().st_ino for path in store.bundles.glob(f"*/{WEIGHTS}")}
    assert len(linked) == 1  # the same weights take room once


def test_a_damaged_bundle_on_the_board_is_nobodys_source_and_is_mended_by_deploying_it_again(
    store: Store, one: Bundle, tmp_path: Path
) -> None:
    install(store, one)
    damaged = store.active_bundle() / WEIGHTS
    with damaged.open("r+b") as file:
        file.write(b"damage")
    same = small_bundle(tmp_path / "same", "1.1", weights=one.file(WEIGHTS).read_bytes())
    assert install(store, same)[1] == 2  # the graph and the damaged chunk
    assert runs(store) == "1.1"
    with pytest.raises(DeployError, match=r"The other slot: expected a whole bundle"):
        store.roll_back()
    assert install(store, one, force=True)[1] == 0  # the one chunk comes from 1.1
    store.roll_back()
    store.roll_back()
    assert runs(store) == "1.0"


def test_an_interrupted_transfer_goes_on_where_it_was(store: Store, one: Bundle) -> None:
    with store.installing():
        first = Installation(store, offer(one))
        missing = first.begin()
        for name, index in missing[:3]:
            first.receive(name, index, read_chunk(one.file(name), index))
    with store.installing():
        assert Installation(store, offer(one)).begin() == missing[3:]
    assert install(store, one)[1] == len(missing) - 3


def test_one_installation_at_a_time(store: Store) -> None:
    with store.installing(), pytest.raises(BusyError), store.installing():
        pass


REFUSED: dict[str, tuple[Callable[[Offer], Offer], str]] = {
    "a chunk less": (
        lambda given: msgspec.structs.replace(given, chunks={**given.chunks, WEIGHTS: given.chunks[WEIGHTS][:-1]}),
        "The list of chunks: expected",
    ),
    "another file": (
        lambda given: msgspec.structs.replace(given, chunks={**given.chunks, "../x": ()}),
        "The list of chunks: expected",
    ),
    "no manifest": (lambda given: msgspec.structs.replace(given, manifest=b"{"), "a valid manifest"),
    "a path that leaves": (
        lambda given: Offer(
            given.manifest.replace(b"tokenizer.json", b"../../tokenizer"),
            b"",
            {name.replace("tokenizer.json", "../../tokenizer"): chunks for name, chunks in given.chunks.items()},
        ),
        "expected a path inside the bundle",
    ),
    "no version": (
        lambda given: msgspec.structs.replace(given, manifest=given.manifest.replace(b'"1.0"', b'"soon"')),
        "A version: expected",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_wrong_offer_is_refused(store: Store, one: Bundle, case: str) -> None:
    change, reason = REFUSED[case]
    with pytest.raises((DeployError, BundleError, ConfigError), match=reason):
        Installation(store, change(offer(one))).begin()
    assert store.read().active is None
    assert not (store.folder.parent / "tokenizer").exists()


def test_chunks_that_are_altered_or_not_asked_for_are_refused(store: Store, one: Bundle) -> None:
    installation = Installation(store, offer(one))
    installation.begin()
    chunk = read_chunk(one.file(WEIGHTS), 0)
    with pytest.raises(DeployError, match=f"Chunk 0 of {WEIGHTS}: expected sha256"):
        installation.receive(WEIGHTS, 0, chunk[:-1] + bytes([chunk[-1] ^ 1]))
    installation.receive(WEIGHTS, 0, chunk)
    for name, index in ((WEIGHTS, 0), (WEIGHTS, 9), (MANIFEST, 0), ("../x", 0)):
        with pytest.raises(DeployError, match="expected a missing one"):
            installation.receive(name, index, chunk)
    with pytest.raises(DeployError, match="expected all chunks"):
        installation.commit(lambda said: None)


def test_chunks_that_do_not_make_the_manifests_file_are_refused_and_thrown_away(
    store: Store, one: Bundle, two: Bundle
) -> None:
    install(store, one)
    before = tree(store.folder)
    given = offer(two)
    wrong = noise("wrong", 100)
    installation = Installation(
        store, msgspec.structs.replace(given, chunks={**given.chunks, "model.onnx": tuple(offer_of(wrong))})
    )
    for name, index in installation.begin():
        installation.receive(name, index, wrong if name == "model.onnx" else read_chunk(two.file(name), index))
    with pytest.raises(BundleError, match=r"model.onnx: expected sha256"):
        installation.commit(lambda said: None)
    assert tree(store.folder) == before


def offer_of(data: bytes) -> list[bytes]:
    from edge_sdk.deploy.chunks import digest

    return [digest(data)]


def test_older_bundles_are_refused_unless_forced(store: Store, one: Bundle, two: Bundle, tmp_path: Path) -> None:
    install(store, two)
    before = tree(store.folder)
    with pytest.raises(DeployError, match=r"The version: expected 2.0 or newer, found 1.0"):
        install(store, one)
    with pytest.raises(DeployError, match=r"expected 2.0 or newer, found 0"):
        install(store, small_bundle(tmp_path / "none", None))
    assert tree(store.folder) == before
    install(store, one, force=True)
    assert runs(store) == "1.0"
    configure(store, minimum_version="1.5")
    with pytest.raises(DeployError, match=r"expected 1.5 or newer"):
        install(store, small_bundle(tmp_path / "x", "1.4.9"))


def test_versions_are_compared_by_their_numbers() -> None:
    assert parse_version("1.10") > parse_version("1.9.9")
    assert parse_version("1.0.0") == parse_version("1")
    assert parse_version("0") == ()
    for wrong in ("", "1.", "v1", "1.2.3.4.5", "1.-2", "٣"):
        with pytest.raises(ConfigError):
            parse_version(wrong)


def test_a_board_that_asks_for_a_signature_takes_only_those_it_trusts(
    store: Store, one: Bundle, two: Bundle, tmp_path: Path
) -> None:
    old, new = make_keys(tmp_path / "old", "old key"), make_keys(tmp_path / "new", "new key")
    assert (tmp_path / "old").stat().st_mode & 0o777 == 0o600
    assert read_keys(tmp_path / "old.pub") == [old]
    store.configure(b'{"require_signature": true}', old.line().encode())
    with pytest.raises(DeployError, match=r"signature: expected one of .*old key.*found none"):
        install(store, one)
    sign(one.path, tmp_path / "new")
    with pytest.raises(DeployError, match=f"found {new.key_id} that this board does not trust"):
        install(store, one)
    sign(one.path, tmp_path / "old")
    assert install(store, one)[0].signed_by == "old key"
    shutil.copy(one.path / SIGNATURE, two.path / SIGNATURE)
    with pytest.raises(DeployError, match=rf"{old.key_id} that does not fit the manifest"):
        install(store, two)
    sign(two.path, tmp_path / "old")
    sign(two.path, tmp_path / "new")
    store.configure(None, new.line().encode())  # the old key is given up
    assert install(store, two)[0].signed_by == "new key"
    assert runs(store) == "2.0"


def test_signatures_of_another_manifest_are_dropped(one: Bundle, two: Bundle, tmp_path: Path) -> None:
    keys = [make_keys(tmp_path / name, name).key_id for name in ("old", "new")]
    for name in ("old", "new", "old"):
        sign(one.path, tmp_path / name)
    assert {made.key for made in read_signatures((one.path / SIGNATURE).read_bytes()).signatures} == set(keys)
    shutil.copy(one.path / SIGNATURE, two.path / SIGNATURE)
    sign(two.path, tmp_path / "new")
    assert [made.key for made in read_signatures((two.path / SIGNATURE).read_bytes()).signatures] == keys[1:]


@pytest.mark.parametrize("content", [b"{}", b'{"signatures": [1]}', b"no", b'{"signatures":[{"key":"x"}]}'])
def test_a_damaged_signature_is_refused(store: Store, one: Bundle, tmp_path: Path, content: bytes) -> None:
    store.configure(b'{"require_signature": true}', make_keys(tmp_path / "key", "k").line().encode())
    (one.path / SIGNATURE).write_bytes(content)
    with pytest.raises(DeployError, match=r"signature"):
        install(store, one)


def test_keys_and_settings_that_cannot_be_read_are_refused_and_replace_nothing(
    store: Store, one: Bundle, tmp_path: Path
) -> None:
    key = make_keys(tmp_path / "key", "k")
    store.configure(b'{"max_starts": 5}', key.line().encode())
    for wrong in (b"{", b'{"no": 1}', b'{"max_starts": 0}', b'{"minimum_version": "x"}'):
        with pytest.raises(DeployError, match=SETTINGS):
            store.configure(wrong, None)
    for wrong in (b"ed25519 AAAA name", b"rsa AAAA name", b"x"):
        with pytest.raises(DeployError, match=TRUSTED_KEYS):
            store.configure(None, wrong)
    assert store.settings() == BoardSettings(max_starts=5)
    assert store.trusted_keys() == [key]
    with pytest.raises(DeployError, match="expected no file"):
        make_keys(tmp_path / "key", "k")
    (tmp_path / "rsa").write_text("-----BEGIN PRIVATE KEY-----\nx\n-----END PRIVATE KEY-----\n")
    with pytest.raises(DeployError, match="expected a private key"):
        sign(one.path, tmp_path / "rsa")


def test_a_crash_loop_after_the_switch_rolls_back_once(store: Store, one: Bundle, two: Bundle) -> None:
    install(store, one)
    store.begin_start()
    store.confirm(store.read().slots["a"].bundle_id)
    assert store.read().slots["a"].healthy
    install(store, two)
    assert [store.begin_start().version for _ in range(4)] == ["2.0", "2.0", "2.0", "1.0"]
    assert store.read().slots["b"].failed == "3 starts without a healthy service"
    assert [store.begin_start().version for _ in range(5)] == ["1.0"] * 5  # healthy before: not counted
    with pytest.raises(DeployError, match="expected no failure, found 3 starts"):
        store.roll_back()
    store.roll_back(force=True)
    assert runs(store) == "2.0"


def test_what_is_healthy_or_alone_is_never_given_up(store: Store, one: Bundle, two: Bundle) -> None:
    install(store, one)
    assert {store.begin_start().version for _ in range(9)} == {"1.0"}  # there is no other
    install(store, two)
    store.begin_start()
    store.confirm("another bundle")
    assert not store.read().slots["b"].healthy
    store.confirm(store.read().slots["b"].bundle_id)
    assert {store.begin_start().version for _ in range(9)} == {"2.0"}


def test_two_bundles_that_both_crash_do_not_take_turns(store: Store, one: Bundle, two: Bundle) -> None:
    install(store, one)
    install(store, two)
    assert [store.begin_start().version for _ in range(12)] == ["2.0"] * 3 + ["1.0"] * 9


def test_a_damaged_record_is_refused(store: Store, one: Bundle) -> None:
    install(store, one)
    (store.folder / "record.json").write_text("{")
    with pytest.raises(DeployError, match="expected a store's record"):
        store.read()


FULL = """
import sys
from pathlib import Path
from small_bundles import install, runs, small_bundle, tree
from edge_sdk.deploy.store import Store
from edge_sdk.errors import DeployError
store = Store(Path(sys.argv[1]) / "store")
install(store, small_bundle(Path(sys.argv[2]) / "one", "1", chunks=1))
before = tree(store.folder)
try:
    install(store, small_bundle(Path(sys.argv[2]) / "two", "2", chunks=16))
except DeployError as error:
    print(error)
assert tree(store.folder) == before
install(store, small_bundle(Path(sys.argv[2]) / "three", "3", chunks=1))
print(runs(store))
"""


def test_a_full_disk_is_a_refusal_and_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    mounted = 'mount -t tmpfs -o size=4m none "$1" || exit 77; exec "$2" -c "$3" "$1" "$4"'
    arguments = ["sh", tmp_path / "disk", sys.executable, FULL, tmp_path]
    command = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mounted, *map(str, arguments)]
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare for a small file system")
    paths = os.pathsep.join([str(ROOT / "tests" / "deploy"), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if result.returncode == 77 or "unshare failed" in result.stderr:
        pytest.skip(f"may not mount a small file system here: {result.stderr}")
    assert result.returncode == 0, result.stderr
    refusal, version = result.stdout.splitlines()
    assert refusal.startswith("The board's disk: expected room for the bundle, found ")
    assert version == "3"
