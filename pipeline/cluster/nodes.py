"""What the nodes of a cluster have, and which of them a job can use.

A node is left out, with a line that says why, if its labels might differ from the others' or its workers
would not find what they need: other versions, no weights, no engine of the kind, no way to the output folder.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from models.spec import SpecError, find_model
from pipeline.cluster import storage
from pipeline.cluster.storage import is_remote
from pipeline.engines import EngineChoice, check_fit, choose_engine
from pipeline.errors import ConfigError, PipelineError
from pipeline.stages import one_line
from pipeline.versions import versions

LOOK_SECONDS = 5.0  # how often the cluster is asked for new nodes
ANSWER_SECONDS = 120.0
_GPU_SHARE = 0.001  # enough to see the device
# What the same footage's labels may depend on.
_SAME_VERSIONS = ("roadmask", "av", "opencv-python-headless", "openvino", "torch")


@dataclass(frozen=True)
class Question:
    """What a job needs of a node.

    Attributes:
        model, engine, precision: as the user asked.
        weights_sha256: of the model's weights here.
        versions: of what runs here.
        token: address of a small file in the output folder that each node must see, and its content.
        roots: what the sources were found under.
    """

    model: str
    engine: str
    precision: str
    weights_sha256: str
    versions: dict[str, str]
    token: tuple[str, bytes]
    roots: tuple[str, ...]


@dataclass(frozen=True)
class Answer:
    """What a node said.

    Attributes:
        problem: why it cannot be used; empty if it can.
        choice: the engine it would take.
        form_sha256: of the model's form that the engine reads, None for the weights themselves.
        unseen: roots of sources that it does not see.
    """

    problem: str = ""
    choice: EngineChoice | None = None
    form_sha256: str | None = None
    unseen: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A node that can be used.

    Attributes:
        node_id, name: as the cluster calls it, and its address for the user.
        cores, gpus: what Ray may give away there.
        answer: what it said.
    """

    node_id: str
    name: str
    cores: float
    gpus: float
    answer: Answer


def look_around(question: Question) -> Answer:
    """Answer for the machine this runs on."""
    try:
        other = _other_version(question.versions, versions())
        if other:
            return Answer(other)
        files = find_model(question.model)
        if files.weights_sha256() != question.weights_sha256:
            return Answer(f"the weights of the model {question.model!r} there are others than here")
        choice = choose_engine(question.engine, question.precision)
        form = check_fit(choice, files)
        uri, content = question.token
        if _content(uri) != content:
            return Answer(
                f"it does not see the output folder ({uri}): give one on a disk that all nodes share,"
                " or a bucket"
            )
    except SpecError as error:
        return Answer(f"it has not the model: {one_line(error)}")
    except (PipelineError, OSError) as error:
        return Answer(one_line(error))
    unseen = tuple(
        root for root in question.roots if not is_remote(root) and not Path(root).exists()
    )
    return Answer("", choice, form, unseen)


def _content(uri: str) -> bytes | None:
    if is_remote(uri):
        return storage.read(uri)
    try:
        return Path(uri).read_bytes()
    except OSError:
        return None


def _other_version(here: dict[str, str], there: dict[str, str]) -> str:
    names = [name for name in _SAME_VERSIONS if here.get(name) != there.get(name)]
    others = ", ".join(f"{name} {there.get(name)} (here {here.get(name)})" for name in names)
    return f"labels might differ: it has {others}; install the same there" if names else ""


@dataclass
class Scout:
    """Finds the nodes of a cluster that a job can use, those that come later too.

    Args:
        question: what the job needs.
        tell: is told which nodes are left out, and why.
    """

    question: Question
    tell: Callable[[str], None]
    left_out: list[str] = field(default_factory=list)
    _asked: dict[Any, tuple[dict[str, Any], float]] = field(default_factory=dict)
    _known: set[str] = field(default_factory=set)
    _looked: float = 0.0
    _chosen: EngineChoice | None = None

    def all(self) -> list[Node]:
        """All nodes of now that can be used. Raises ConfigError if there is none."""
        found: list[Node] = []
        self._ask()
        while self._asked:
            found += self._hear(1.0)
        found = self._of_one_engine(found)
        if not found:
            why = "; ".join(self.left_out) or "it has none that has cores for us"
            raise ConfigError(f"no node of the Ray cluster can be used: {why}")
        return found

    def new(self) -> list[Node]:
        """Nodes that have come and can be used."""
        if time.monotonic() - self._looked >= LOOK_SECONDS:
            self._ask()
        return self._of_one_engine(self._hear(0.0)) if self._asked else []

    def _ask(self) -> None:
        self._looked = time.monotonic()
        for node in ray.nodes():
            if not node["Alive"] or node["NodeID"] in self._known:
                continue
            self._known.add(node["NodeID"])
            if not node["Resources"].get("CPU"):
                continue  # a head that is to do nothing else
            here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            gpus = _GPU_SHARE if node["Resources"].get("GPU") else 0
            task = _ask_node.options(num_cpus=0, num_gpus=gpus, scheduling_strategy=here)
            self._asked[task.remote(self.question)] = node, time.monotonic()

    def _hear(self, timeout: float) -> list[Node]:
        """Usable nodes among those that have answered by now."""
        found = []
        for task in ray.wait(list(self._asked), num_returns=len(self._asked), timeout=timeout)[0]:
            node, _ = self._asked.pop(task)
            answer = _get_answer(task)
            if answer.problem:
                self._leave_out(node, answer.problem)
            else:
                found.append(_node(node, answer))
        for task, (node, since) in list(self._asked.items()):
            if time.monotonic() - since > ANSWER_SECONDS:
                del self._asked[task]
                self._leave_out(node, f"no answer for {ANSWER_SECONDS:.0f} s: its cores are taken")
        return found

    def _of_one_engine(self, nodes: list[Node]) -> list[Node]:
        """Those whose engine is that of the job: the first time, what most of the cores have, or a GPU."""
        if nodes and self._chosen is None:
            self._chosen = _most(nodes)
        fit = []
        for node in nodes:
            choice = node.answer.choice
            assert choice is not None
            assert self._chosen is not None
            if (choice.name, choice.runtime) == (self._chosen.name, self._chosen.runtime):
                fit.append(node)
            else:
                self._say(
                    f"node {node.name} is left out: its engine is {choice.runtime}, others have"
                    f" {self._chosen.runtime}, and labels would differ; give --engine or --precision"
                )
        return fit

    def _leave_out(self, node: dict[str, Any], why: str) -> None:
        self._say(f"node {node['NodeManagerAddress']} is left out: {why}")

    def _say(self, line: str) -> None:
        self.left_out.append(line)
        self.tell(line)


def _most(nodes: Sequence[Node]) -> EngineChoice:
    cores: Counter[tuple[bool, str]] = Counter()
    choices: dict[tuple[bool, str], EngineChoice] = {}
    for node in nodes:
        assert node.answer.choice is not None
        choice = node.answer.choice
        key = (choice.on_gpu, choice.runtime)
        cores[key] += node.cores  # type: ignore[assignment]
        choices[key] = choice
    return choices[max(cores, key=lambda key: (key[0], cores[key]))]


def _node(node: dict[str, Any], answer: Answer) -> Node:
    resources = node["Resources"]
    return Node(node["NodeID"], node["NodeManagerAddress"], resources.get("CPU", 0.0),
                resources.get("GPU", 0.0), answer)  # fmt: skip


def _get_answer(task: Any) -> Answer:
    try:
        answer: Answer = ray.get(task)
    except RayError as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        return Answer(
            f"its workers do not run: {lines[-1].strip() if lines else type(error).__name__}"
        )
    return answer


@ray.remote(max_retries=0)
def _ask_node(question: Question) -> Answer:
    return look_around(question)
