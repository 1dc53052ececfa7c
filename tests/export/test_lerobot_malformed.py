"""Damaged and hostile datasets: an error that names what is wrong, never half a dataset."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_export.episodes import EpisodeSource, open_episodes
from edge_export.lerobot.info import Info, check_template
from edge_sdk.errors import ConfigError, EdgeError
from lerobot_files import VERSIONS, Dataset, write_dataset

QUICK = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 10**19), st.floats(), st.text(max_size=8), st.just([]), st.just({})
)


@pytest.fixture(scope="module", params=VERSIONS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write_dataset(tmp_path_factory.mktemp("whole") / "set", request.param, video=False)


def copy(whole: Dataset, tmp_path: Path) -> Path:
    shutil.rmtree(tmp_path / "set", ignore_errors=True)
    shutil.copytree(whole.folder, tmp_path / "set")
    return tmp_path / "set"


def read_all(folder: Path) -> EpisodeSource:
    source = open_episodes(folder)
    for number in range(len(source)):
        source[number].check(source.schema)
    return source


def assert_refused_or_whole(folder: Path, whole: Dataset) -> None:
    try:
        source = read_all(folder)
    except EdgeError:
        return
    assert [len(source[number]) for number in range(len(source))] == list(whole.lengths)


def changed_info(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    path = folder / "meta" / "info.json"
    info = json.loads(path.read_text())
    change(info)
    path.write_text(json.dumps(info))


@QUICK
@given(data=st.data())
def test_a_wrong_value_in_info_is_an_error_or_a_whole_dataset(
    whole: Dataset, tmp_path: Path, data: st.DataObject
) -> None:
    folder = copy(whole, tmp_path)
    name = data.draw(st.sampled_from(sorted(json.loads((folder / "meta" / "info.json").read_text()))))
    value = data.draw(VALUES)
    changed_info(folder, lambda info: info.update({name: value}))
    assert_refused_or_whole(folder, whole)


@QUICK
@given(data=st.data())
def test_a_wrong_value_in_a_feature_is_an_error_or_a_whole_dataset(
    whole: Dataset, tmp_path: Path, data: st.DataObject
) -> None:
    folder = copy(whole, tmp_path)
    key = data.draw(st.sampled_from(["observation.state", "observation.speed", "action"]))
    field = data.draw(st.sampled_from(["dtype", "shape", "names"]))
    shapes = st.lists(st.integers(-1, 10**9), max_size=3)
    value = data.draw(st.one_of(VALUES, shapes, st.just("video"), st.just("image")))
    changed_info(folder, lambda info: info["features"][key].update({field: value}))
    assert_refused_or_whole(folder, whole)


@QUICK
@given(data=st.data())
def test_damaged_bytes_are_an_error_or_a_whole_dataset(whole: Dataset, tmp_path: Path, data: st.DataObject) -> None:
    """Flipped and cut files; what a flipped bit of a number changes is no damage that could be seen."""
    folder = copy(whole, tmp_path)
    path = data.draw(st.sampled_from(sorted(file for file in folder.rglob("*") if file.is_file())))
    content = bytearray(path.read_bytes())
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del content[place:]
    path.write_bytes(content)
    assert_refused_or_whole(folder, whole)


@pytest.mark.parametrize(
    "template",
    [
        "../{episode_index}.parquet",
        "/etc/{episode_index}",
        "data/{episode_index.__class__}",
        "data/{episode_index:999999999d}",
        "data/{other}",
        "data/{0}",
        "data/{episode_index!r}",
        "data/{episode_index",
    ],
)
def test_templates_of_paths_that_lead_elsewhere(template: str) -> None:
    with pytest.raises(ConfigError, match="data_path"):
        check_template("data_path", template)


@given(template=st.text(alphabet="ab/.{}:d039episode_index!", max_size=40))
def test_a_template_that_is_let_through_stays_inside(template: str) -> None:
    try:
        check_template("data_path", template)
    except ConfigError:
        return
    places = {"episode_index": 3, "episode_chunk": 0, "chunk_index": 0, "file_index": 1, "video_key": "camera"}
    made = Path("/set", template.format(**places))
    assert ".." not in made.parts
    assert made.is_relative_to("/set")
    assert len(str(made)) < 500


@pytest.mark.parametrize("name", ["meta/info.json", "meta/tasks", "meta/episodes", "data"])
def test_what_is_missing_is_named(whole: Dataset, tmp_path: Path, name: str) -> None:
    folder = copy(whole, tmp_path)
    (found,) = [path for path in (folder / Path(name).parent).iterdir() if path.stem == Path(name).stem]
    shutil.rmtree(found) if found.is_dir() else found.unlink()
    with pytest.raises(ConfigError, match=name.replace("data", "parquet")):
        read_all(folder)


def rewrite(folder: Path, change: Callable[[dict[str, list[Any]]], object]) -> None:
    """Changes the columns of the dataset's first table."""
    path = min((folder / "data").rglob("*.parquet"))
    columns = pq.read_table(path).to_pydict()
    change(columns)
    pq.write_table(pa.table(columns), path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda columns: columns["action"][2].__setitem__(0, float("nan")), "finite numbers of action"),
        (lambda columns: columns["action"].__setitem__(2, None), "a value of action in every row"),
        (lambda columns: columns["action"].__setitem__(2, [1.0]), "a parquet table"),
        (lambda columns: columns.pop("observation.state"), r"observation\.state"),
        (lambda columns: columns["frame_index"].__setitem__(1, 2), "frames 0 to 4"),
        (lambda columns: columns["episode_index"].__setitem__(1, 9), "5 rows of episode 0"),
        (lambda columns: columns["task_index"].__setitem__(0, 9), "task_index"),
        (lambda columns: columns.__setitem__("action", [str(value) for value in columns["action"]]), "a parquet table"),
    ],
)
def test_rows_that_contradict_the_metadata(
    whole: Dataset, tmp_path: Path, change: Callable[[Any], object], message: str
) -> None:
    folder = copy(whole, tmp_path)
    rewrite(folder, change)
    with pytest.raises(ConfigError, match=message):
        open_episodes(folder)[0]


def test_counts_that_contradict_each_other(whole: Dataset, tmp_path: Path) -> None:
    for name, message in (("total_episodes", "4 episodes"), ("total_frames", "16 frames")):
        folder = copy(whole, tmp_path)
        changed_info(folder, lambda info, name=name: info.update({name: info[name] + 1}))
        with pytest.raises(ConfigError, match=message):
            open_episodes(folder)


def test_versions_that_are_not_known(whole: Dataset, tmp_path: Path) -> None:
    folder = copy(whole, tmp_path)
    changed_info(folder, lambda info: info.update(codebase_version="v1.6"))
    with pytest.raises(ConfigError, match=r"v2\.0 or v2\.1 or v3\.0.*v1\.6"):
        open_episodes(folder)


def test_other_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"meta/info\.json"):
        open_episodes(tmp_path)
    with pytest.raises(ConfigError, match="nothing here"):
        open_episodes(tmp_path / "nothing here")


def test_names_of_elements_and_axes() -> None:
    features = {
        "observation.images.a": {"dtype": "video", "shape": [3, 20, 30], "names": ["channels", "height", "width"]},
        "observation.images.b": {"dtype": "image", "shape": [3, 20, 30]},
        "observation.images.c": {"dtype": "image", "shape": [20, 30, 1], "names": ["height", "width", "channel"]},
        "observation.images.deep": {"dtype": "video", "shape": [20, 30, 1], "info": {"video.is_depth_map": True}},
        "action": {"dtype": "float32", "shape": [2], "names": [["x", "y"]]},
    }

    info = msgspec.convert(
        {"codebase_version": "v3.0", "fps": 10, "features": features, "total_episodes": 1, "total_frames": 1}
        | {"data_path": "d", "video_path": "v"},
        Info,
    )
    shapes = {key: feature.image_shape for key, feature in info.observations().items()}
    assert list(shapes.values()) == [(20, 30, 3), (20, 30, 3), (20, 30, 1)]
    assert info.features["action"].element_names() is None
    assert np.prod(info.features["action"].shape) == 2
