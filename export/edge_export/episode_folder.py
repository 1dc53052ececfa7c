"""A folder of episodes in files of ours: policy.json, and one safetensors file for each.

What a simulator can write without a library for data sets; a file's tensors are ``action`` and ``observation.<name>``,
and its metadata may have an ``instruction``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from edge_export.episodes import Episode
from edge_sdk.control.policy import POLICY_FILE, PolicyConfig
from edge_sdk.errors import CheckpointError, explain
from edge_sdk.files import new_directory
from edge_sdk.policy_spec import OBSERVATION_PREFIX

ACTION = "action"


class EpisodeFolder:
    """The episodes of a folder, in the order of their names. Raises CheckpointError for files that are none."""

    def __init__(self, folder: Path) -> None:
        self.schema = PolicyConfig.read(folder / POLICY_FILE)
        self._files = sorted(folder.glob("*.safetensors"))
        if not self._files:
            raise CheckpointError(explain(str(folder), expected="*.safetensors", found="none", todo="Record some."))
        self.lengths = np.array([self._length(path) for path in self._files], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> Episode:
        path = self._files[index]
        try:
            with safe_open(path, framework="numpy") as file:
                observations = {
                    name.removeprefix(OBSERVATION_PREFIX): file.get_tensor(name)
                    for name in file.keys()  # noqa: SIM118
                    if name.startswith(OBSERVATION_PREFIX)
                }
                instruction = (file.metadata() or {}).get("instruction", "")
                return Episode(observations, file.get_tensor(ACTION), instruction)
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from None

    def _length(self, path: Path) -> int:
        try:
            with safe_open(path, framework="numpy") as file:
                return int(file.get_slice(ACTION).get_shape()[0])
        except (SafetensorError, OSError) as error:
            raise _unreadable(path, error) from None


def write_episodes(folder: Path, schema: PolicyConfig, episodes: Sequence[Episode]) -> None:
    """Writes a folder that :class:`EpisodeFolder` reads; it appears whole or not at all."""
    with new_directory(folder) as new:
        schema.write(new / POLICY_FILE)
        for number, episode in enumerate(episodes):
            episode.check(schema)
            tensors = {
                OBSERVATION_PREFIX + name: np.ascontiguousarray(part) for name, part in episode.observations.items()
            }
            tensors[ACTION] = np.ascontiguousarray(episode.actions)
            save_file(tensors, new / f"{number:06d}.safetensors", metadata={"instruction": episode.instruction})


def _unreadable(path: Path, error: object) -> CheckpointError:
    return CheckpointError(explain(str(path), expected="an episode", found=error, todo="Record it again."))
