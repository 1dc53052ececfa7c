"""Cuts short what a board does, after every change to its files or as power cuts do, and looks at what is left.

``cuts.py kill|power WORK FOLDER`` prints how often; WORK is ``install``, ``twice``, ``rollback`` or ``start``.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "runtime")]

from edge_sdk import Bundle  # noqa: E402
from edge_sdk.deploy.store import Store  # noqa: E402
from kill_points import kill_at_each_change  # noqa: E402
from power_cuts import Recorder, promised, write_image  # noqa: E402
from small_bundles import install, runs, small_bundle, tree  # noqa: E402 (found by the line above)

OUTCOMES = {"install": {"1", "2"}, "twice": {"1", "2", "3"}, "rollback": {"2", "1"}, "start": {"2", "1"}}
"""Versions that a board may run after a cut; each must be seen."""


def prepare(folder: Path) -> tuple[Bundle, Bundle, Bundle]:
    """Three bundles; weights of the third are the second's."""
    one, two = (small_bundle(folder / version, version, chunks=1) for version in ("1", "2"))
    return one, two, small_bundle(folder / "3", "3", weights=two.file("model.onnx.data").read_bytes())


def begin(store: Store, kind: str, one: Bundle, two: Bundle) -> None:
    """What a store holds before the work."""
    zero = small_bundle(store.folder.parent / "0", "0.5")
    install(store, zero)  # what an installation has to make room for
    install(store, one)
    if kind in ("rollback", "start"):
        install(store, two)
    for _ in range(3 if kind == "start" else 0):
        store.begin_start()  # the next one is one too many


def work_of(kind: str, store: Store, two: Bundle, three: Bundle) -> Callable[[], object]:
    """The work that is cut short."""
    kinds: dict[str, Callable[[], object]] = {
        "install": lambda: install(store, two),
        "twice": lambda: (install(store, two), install(store, three)),
        "rollback": store.roll_back,
        "start": store.begin_start,
    }
    return kinds[kind]


def look(store: Store, kind: str, found: set[str], three: Bundle | None) -> None:
    """Whether the board runs one of the two; and whether it can be deployed to, if a bundle is given for that."""
    version = runs(store)
    assert version in OUTCOMES[kind], version
    found.add(version)
    if three is not None and version != "3":
        install(store, three)
        assert runs(store) == "3"
        store.roll_back()
        assert runs(store) == version


def main() -> None:
    """Cuts, looks, and prints how often."""
    cut, kind, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    one, two, three = prepare(folder)
    start = folder / "start" / "store"
    begin(Store(start), kind, one, two)
    (kill if cut == "kill" else cut_power)(kind, folder, start, two, three)


def kill(kind: str, folder: Path, start: Path, two: Bundle, three: Bundle) -> None:
    """After each change."""
    place, found = folder / "store", set[str]()
    shutil.copytree(start, place)

    def look_and_restore(stop: int) -> None:
        look(Store(place), kind, found, three if stop % 3 == 0 else None)
        shutil.rmtree(place)
        shutil.copytree(start, place)

    def work() -> None:
        work_of(kind, Store(place), two, three)()

    kills = kill_at_each_change(place, work, look_and_restore)
    assert found == OUTCOMES[kind], found
    print(kills)


def cut_power(kind: str, folder: Path, start: Path, two: Bundle, three: Bundle) -> None:
    """After each event, in several ways; afterwards a cut in the midst of what was cut already."""
    place, found, count = folder / "store", set[str](), 0
    shutil.copytree(start, place)
    before, recorder = promised(place), Recorder(place)
    work_of(kind, Store(place), two, three)()
    recorder.stop()
    images = list(recorder.images(before, seed=1))
    everything = next(files for _, loss, files in reversed(images) if loss == "names, empty")
    assert {name for name in everything if not name.endswith(("/", ".lock"))} == set(tree(place))
    for count, (number, loss, files) in enumerate(images, 1):
        write_image(files, place)
        try:
            look(Store(place), kind, found, three if count % 5 == 0 else None)
        except Exception as error:
            raise AssertionError(f"after {recorder.events[number]}, {loss}") from error
    assert found == OUTCOMES[kind], found
    print(count)


if __name__ == "__main__":
    main()
