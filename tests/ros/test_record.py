"""Bags of real processes, read by rosbags and, where they were cut off, repaired; and what writes them by itself."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_typestore

import edge_sdk
from edge_ros_bridge import bag as bags
from edge_ros_bridge import definitions
from edge_ros_bridge.bag import Bag, BagError, repair
from edge_ros_bridge.sensors import Source
from edge_sdk.control.policy import ObservationSpec
from processes import Peer, Ros, end

SENSORS = Path(__file__).with_name("sensors.py")
LARGEST = 700_000
FULL = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({LARGEST}, {LARGEST}))"
"""No file of the process may become longer: as a full disk, which every write meets."""


def messages(folder: Path) -> dict[str, list[Any]]:
    """What a bag holds by topic, decoded by the definitions in it alone."""
    found: dict[str, list[Any]] = {}
    with AnyReader([folder]) as reader:
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(reader.deserialize(data, connection.msgtype))
    return found


def only_bag(folder: Path) -> Path:
    (found,) = folder.glob("rosbag2_*")
    return found


def test_a_bag_holds_what_was_said_with_types_and_qos(ros: Ros, scan_bundle: Path, tmp_path: Path) -> None:
    answer = edge_sdk.load(scan_bundle).generate("jump twice").text
    recorder = ros.node("record_node", folder=tmp_path, autostart=True)
    language = ros.node(bundle=scan_bundle, drive=False, autostart=True)
    with recorder as node, language, ros.peer() as peer, ros.peer(SENSORS) as sensors:
        sensors.call("use", number=7, encoding="bgr8")
        sensors.call("run")
        peer.call("match")
        wait_for_recorder(peer)
        since_s = peer.call("send", prompt="jump twice")
        peer.events("wait", topic="text", since_s=since_s)
        sensors.call("say", text="\u00e4 & \U0001f916")
        sensors.call("listen", seconds=0.5)
        code, output = end(node)
    assert code == 0, output
    folder = only_bag(tmp_path)
    found = messages(folder)
    assert [message.data for message in found["/language/prompt"]] == ["jump twice"]
    assert "".join(message.data for message in found["/language/tokens"]) == answer
    assert [message.data for message in found["/language/text"]] == [answer]
    assert found["/chat"][0].content == "\u00e4 & \U0001f916"
    image = found["/image"][0]
    assert (image.encoding, image.width, set(image.data.tolist())) == ("bgr8", 64, {7})
    source = Source(ObservationSpec(name="front", shape=(48, 64, 3), kind="image"), "image", "/image")
    assert source.read(image).shape == (48, 64, 3)
    names = {status.name for array in found["/diagnostics"] for status in array.status}
    assert {"language: language", "record: record"} <= names

    with Reader(folder) as reader:
        topics = {connection.topic: connection for connection in reader.connections}
        assert reader.message_count == sum(map(len, found.values()))
        times = [time_ns for _, time_ns, _ in reader.messages()]
    assert 0 <= time.time_ns() - times[-1] < 60e9
    (qos,) = topics["/language/text"].ext.offered_qos_profiles
    assert (qos.reliability.name, qos.durability.name) == ("RELIABLE", "TRANSIENT_LOCAL")
    assert topics["/image"].ext.offered_qos_profiles[0].reliability.name == "BEST_EFFORT"
    jazzy = get_typestore(Stores.ROS2_JAZZY)
    for topic in ("/image", "/imu", "/odom", "/diagnostics", "/language/text"):
        assert topics[topic].digest == jazzy.hash_rihs01(topics[topic].msgtype)
    with next(folder.glob("*.mcap")).open("rb") as file:  # by another library
        summary = make_reader(file).get_summary()
        assert summary.statistics.message_count == sum(map(len, found.values()))
        assert "string content" in next(each for each in summary.schemas.values() if "Chat" in each.name).data.decode()


def wait_for_recorder(peer: Peer) -> None:
    """Until it has subscribed to what is looked at above, and those who publish that know of it."""
    topics = [f"/language/{name}" for name in ("prompt", "tokens", "text")] + ["/chat", "/image"]
    peer.call("wait_subscribed", node="record", topics=topics)
    peer.call("listen", seconds=1.5)


def test_a_killed_recorder_leaves_all_but_the_last_second(ros: Ros, tmp_path: Path) -> None:
    recorder = ros.node("record_node", folder=tmp_path, topics="[/imu, /image]", autostart=True)
    with recorder as node, ros.peer(SENSORS) as sensors:
        sensors.call("run")
        sensors.call("listen", seconds=4.0)
        killed_ns = time.time_ns()
        end(node, signal.SIGKILL)
    cut = only_bag(tmp_path)
    assert not (cut / "metadata.yaml").exists()
    program = "import sys; from edge_ros_bridge.bag import main; sys.exit(main())"
    result = ros.run("-c", program, cut, tmp_path / "whole")
    assert result.returncode == 0, result.stderr
    found = messages(tmp_path / "whole")
    assert set(found) == {"/imu", "/image"}
    numbers = [round(message.angular_velocity.x) for message in found["/imu"]]
    assert numbers == [1 + (numbers[0] - 1 + step) % 200 for step in range(len(numbers))]
    with Reader(tmp_path / "whole") as reader:
        assert killed_ns - reader.end_time < 2.5e9
    assert "expected a new folder" in ros.run("-c", program, cut, tmp_path / "whole").stderr


def test_a_full_disk_ends_the_recording_and_is_said(ros: Ros, tmp_path: Path) -> None:
    recorder = ros.node("record_node", before=FULL, folder=tmp_path, topics="[/image]", autostart=True)
    with recorder as node, ros.peer(SENSORS) as sensors:
        sensors.call("run")
        for _ in range(60):
            sensors.call("listen", seconds=0.5)
            if sum(path.stat().st_size for path in tmp_path.glob("*/*.mcap")) == LARGEST:
                break
        sensors.call("listen", seconds=1.0)
        code, output = end(node)
    assert code == 0
    assert "the recording ended: [Errno 27] File too large" in output
    assert repair(only_bag(tmp_path), tmp_path / "whole") > 0
    assert set(messages(tmp_path / "whole")) == {"/image"}


def test_a_recorder_without_a_folder_fails_to_configure(ros: Ros, tmp_path: Path) -> None:
    with ros.node("record_node", folder=tmp_path / "none", autostart=True) as node:
        code, output = end(node, None)
    assert code == 1
    assert "The parameter folder: expected a folder" in output


def string(text: str) -> bytes:
    """A std_msgs/String in CDR."""
    content = text.encode() + b"\0"
    return b"\0\1\0\0" + len(content).to_bytes(4, "little") + content


def test_what_waits_for_the_disk_is_bounded_and_dropped_messages_are_counted(
    tmp_path: Path,
) -> None:
    types = get_typestore(Stores.ROS2_JAZZY)
    bag = Bag(tmp_path / "bag", capacity_bytes=1000)
    bag.add_topic("/a", "std_msgs/msg/String", types, ())
    for number in range(5):
        bag.write("/a", number, string(str(number)))
    bag.write("/a", 5, string("x" * 2000))
    bag.close()
    assert bag.error == ""
    assert bag.dropped == {"/a": 1}
    assert [message.data for message in messages(tmp_path / "bag")["/a"]] == list("01234")
    with pytest.raises(BagError, match="expected a new folder"):
        Bag(tmp_path / "bag")
    with pytest.raises(BagError, match="expected a file"):
        repair(tmp_path, tmp_path / "new")


def test_a_bag_that_is_cut_off_anywhere_is_repaired_up_to_there(tmp_path: Path) -> None:
    types = get_typestore(Stores.ROS2_JAZZY)
    bag = Bag(tmp_path / "bag")
    bag.add_topic("/a", "std_msgs/msg/String", types, ())
    for number in range(40):
        bag.write("/a", number, string(f"{number} " + "x" * 100_000))
    bag.close()
    path = tmp_path / "bag" / "bag.mcap"
    content, counts = path.read_bytes(), []
    for cut, size in enumerate((8, 60, 900_000, 2_500_000, 3_999_999, len(content) - 1)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        (folder / "bag.mcap").write_bytes(content[:size])
        counts.append(repair(folder, tmp_path / f"whole{cut}"))
        if counts[-1]:
            found = [message.data.split()[0] for message in messages(tmp_path / f"whole{cut}")["/a"]]
            assert found == [str(number) for number in range(counts[-1])]
    assert counts == sorted(counts)
    assert (counts[0], counts[-1]) == (0, 40)
    assert 10 <= counts[3] <= 25


def test_types_are_those_of_the_installed_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("Outer", "my_msgs/Inner[] all\nint32 LIMIT=3\n"), ("Inner", "string<=10 name\nfloat64[3] at")):
        (tmp_path / "share" / "my_msgs" / "msg").mkdir(parents=True, exist_ok=True)
        (tmp_path / "share" / "my_msgs" / "msg" / f"{name}.msg").write_text(text)
    monkeypatch.setenv("AMENT_PREFIX_PATH", str(tmp_path))
    types = definitions.types_of("my_msgs/msg/Outer")
    assert {"my_msgs/msg/Outer", "my_msgs/msg/Inner"} <= set(types.fielddefs)
    with pytest.raises(BagError, match=r"my_msgs/msg/Other\.msg in one of"):
        definitions.types_of("my_msgs/msg/Other")


def test_without_rosbags_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bags, "find_spec", lambda name: None)
    with pytest.raises(BagError, match="pip install 'rosbags"):
        bags.require_rosbags()
