"""What cameras need, what a node has, and so how many nodes: the arithmetic of a plan."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass

from pipeline.errors import ConfigError
from pipeline.plan.costs import Costs

WRITES = ("none", "record", "out")
LEAST_FPS = 0.01  # fewer is no stream, and a node would serve any number
STREAMS_A_STEP = 16  # that a GPU takes at once: beyond, a step gains little and takes longer
NVDEC_PIXELS = 1920 * 1080  # makers of GPUs give decoding rates for this size
LABEL_BYTES = 11_000  # of a recorded frame at 640x360, compressed; measured on the sample clip
LABEL_PIXELS = 640 * 360
LABEL_MS = 0.5  # to compress them
SPLIT_COST = 7 / 6  # of the cores' time, where a network is split among several; measured with two
MOST_ENGINE_CORES = 8  # a network of this size gains nothing by more


@dataclass(frozen=True)
class Ask:
    """What shall be served.

    Attributes:
        streams: cameras.
        fps: frames a second of each.
        size_hw: of their pictures, pixels.
        mbps: megabit a second of each camera's video.
        write: "none"; "record": packets and labels; "out": colours and labels as video.
        load: share of a node's capacity to plan with, the rest is for bursts.
        spare: nodes that may fail at once.
        max_latency_ms: frames that would be labelled later than this after their arrival are dropped.
        takeover_seconds: until another node serves a dead node's cameras.
    """

    streams: int
    fps: float = 30.0
    size_hw: tuple[int, int] = (720, 1280)
    mbps: float = 4.0
    write: str = "none"
    load: float = 0.7
    spare: int = 1
    max_latency_ms: float = 200.0
    takeover_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.streams < 1 or self.spare < 0:
            raise ConfigError(
                f"there must be a camera at least, and no less than 0 spare nodes, got"
                f" {self.streams} and {self.spare}"
            )
        rates = self.fps, self.mbps, self.max_latency_ms, self.takeover_seconds
        if not all(0 < rate < math.inf for rate in rates):
            raise ConfigError("frames a second, megabit a second and latency must be above 0")
        if self.fps < LEAST_FPS:
            raise ConfigError(f"fps must be at least {LEAST_FPS:g}, got {self.fps:g}")
        if not 0 < self.load <= 1:
            raise ConfigError(
                f"load is a share of a node's capacity, above 0 to 1, got {self.load}"
            )
        if self.write not in WRITES:
            raise ConfigError(f"unknown --write {self.write!r}: choose one of {', '.join(WRITES)}")

    @property
    def frames_a_second(self) -> float:
        return self.streams * self.fps


@dataclass(frozen=True)
class Node:
    """One machine of the cluster.

    Attributes:
        cores, gpus: of it.
        nvdec: decoding engines of its GPUs that are to be used; 0 decodes on the cores.
        nvdec_fps: 1920x1080 frames a second that one of them decodes.
        nic_gbps: gigabit a second that come in.
        disk_mb_s: megabyte a second that its disk writes.
    """

    cores: int
    gpus: int = 0
    nvdec: int = 0
    nvdec_fps: float = 0.0
    nic_gbps: float = 10.0
    disk_mb_s: float = 500.0

    def __post_init__(self) -> None:
        if self.cores < 1 or self.gpus < 0 or self.nvdec < 0:
            raise ConfigError(f"a node must have a core at least, got {self.cores}")
        if self.nvdec and not self.nvdec_fps > 0:
            raise ConfigError(
                "--node nvdec= needs nvdec_fps=: the 1920x1080 frames a second of one engine, by its"
                " maker or by measurement"
            )
        if not (self.nic_gbps > 0 and self.disk_mb_s > 0):
            raise ConfigError("a node's network and disk must be above 0")


def parse_node(text: str | None, costs: Costs) -> Node:
    """A node as the command line has it; what is not said is as on the machine of the costs.

    Raises ConfigError for an unknown key or a value that is no number.
    """
    values: dict[str, float] = asdict(Node(costs.cores, int(costs.on_device)))
    for pair in text.split(",") if text else ():
        key, equals, value = pair.strip().partition("=")
        if key not in Node.__dataclass_fields__ or not equals:
            known = ", ".join(Node.__dataclass_fields__)
            raise ConfigError(f"--node is KEY=N,... with {known}; got {pair.strip()!r}")
        try:
            values[key] = float(value)
            if not math.isfinite(values[key]):
                raise ValueError(value)
        except ValueError as error:
            raise ConfigError(f"--node {key} must be a number, got {value!r}") from error
    node = Node(
        int(values["cores"]), int(values["gpus"]), int(values["nvdec"]), values["nvdec_fps"],
        values["nic_gbps"], values["disk_mb_s"],
    )  # fmt: skip
    if costs.on_device and not node.gpus:
        raise ConfigError(
            f"the costs are those of a GPU ({costs.engine}): give --node gpus=1 or more"
        )
    return node


@dataclass(frozen=True)
class Resource:
    """One thing that nodes have and cameras need.

    Attributes:
        name: with its unit.
        needed: by all cameras.
        a_node: what a node has.
    """

    name: str
    needed: float
    a_node: float

    @property
    def nodes(self) -> float:
        """Nodes that would be wholly used; infinite where they have none of what is needed."""
        if self.needed == 0:
            return 0.0
        return self.needed / self.a_node if self.a_node else math.inf


@dataclass(frozen=True)
class Engines:
    """What decodes and labels the frames of a node. A camera's memory lies in one engine, which alone can
    label it, frame by frame.

    Attributes:
        count: engines side by side.
        step_ms: of a step of n streams, `step_ms[0] + n * step_ms[1]`.
        largest: streams a step at most.
        decode_servers: cores or decoding engines for the cameras.
        decode_ms: of a frame on one of them, writing included.
        cores: that an engine keeps busy.
    """

    count: int
    step_ms: tuple[float, float]
    largest: int
    decode_servers: int
    decode_ms: float
    cores: float = 0.0

    def step_seconds(self, streams: int) -> float:
        return (self.step_ms[0] + streams * self.step_ms[1]) / 1000

    def cameras(self, fps: float, load: float) -> int:
        """How many of such cameras a node can serve without exceeding a load."""
        if not (self.count and self.decode_servers):
            return 0
        each = 0
        while self._used_by(each + 1, fps) <= load:
            each += 1
        decoded = math.floor(load * self.decode_servers * 1000 / (self.decode_ms * fps))
        return min(self.count * each, decoded)

    def _used_by(self, cameras: int, fps: float) -> float:
        """Share of an engine's time that cameras take, in steps as large as can be."""
        together = min(cameras, self.largest)
        return cameras * fps * self.step_seconds(together) / together


@dataclass(frozen=True)
class Plan:
    """So many nodes of such a kind.

    Attributes:
        ask, node, costs: what it was made of.
        resources: the most wanting first.
        working: nodes that the cameras need.
        engines: of a node.
        cameras_a_node: that it serves at the planned load.
    """

    ask: Ask
    node: Node
    costs: Costs
    resources: tuple[Resource, ...]
    working: int
    engines: Engines
    cameras_a_node: int

    @property
    def nodes(self) -> int:
        """With the spare ones."""
        return self.working + self.ask.spare

    @property
    def binds(self) -> Resource:
        return self.resources[0]

    def used(self, resource: Resource) -> float:
        """Share of it that is used, all nodes at work."""
        return resource.nodes / self.nodes


def make_plan(ask: Ask, costs: Costs, node: Node) -> Plan:
    """How many nodes `ask` needs. Raises ConfigError where no number of such nodes is enough."""
    engines = _engines(ask, costs, node)
    resources = sorted(
        _resources(ask, costs, node, engines), key=lambda found: found.nodes, reverse=True
    )
    if not math.isfinite(resources[0].nodes):
        raise ConfigError(f"such nodes have no {resources[0].name}: see --node")
    cameras = engines.cameras(ask.fps, ask.load)
    latency_ms = engines.decode_ms + 1000 * engines.step_seconds(1)
    if cameras < 1 or latency_ms > ask.max_latency_ms:
        raise ConfigError(
            f"a node of {node.cores} cores and {node.gpus} GPUs cannot serve one camera of"
            f" {ask.fps:g} frames a second at {100 * ask.load:.0f} % load: a frame takes it"
            f" {latency_ms:.0f} ms; give it more, or ask for fewer frames"
        )
    # A node serves whole cameras by whole engines: that can leave a part of it unused.
    by_share = math.ceil(resources[0].nodes / ask.load)
    working = max(by_share, math.ceil(ask.streams / cameras))
    return Plan(ask, node, costs, tuple(resources), working, engines, cameras)


def _resources(ask: Ask, costs: Costs, node: Node, engines: Engines) -> list[Resource]:
    rate = ask.frames_a_second
    core_ms = _decode_ms(ask, costs, node) + engines.cores * engines.step_ms[1]
    gpus = 0.0
    if costs.on_device:
        gpus = rate * engines.step_seconds(STREAMS_A_STEP) / STREAMS_A_STEP
    decoders = rate * (ask.size_hw[0] * ask.size_hw[1] / NVDEC_PIXELS)
    return [
        Resource("CPU cores", rate * core_ms / 1000, node.cores),
        Resource("GPUs", gpus, node.gpus),
        Resource("NVDEC engines", decoders / node.nvdec_fps if node.nvdec else 0.0, node.nvdec),
        Resource("network, Gbit/s in", ask.streams * ask.mbps / 1000, node.nic_gbps),
        Resource("disk, MB/s", ask.streams * _disk_bytes(ask, costs) / 1e6, node.disk_mb_s),
    ]


def _decode_ms(ask: Ask, costs: Costs, node: Node) -> float:
    """Of a core, for a frame: decoding, unless engines made for it do, and writing."""
    decode = 0.0 if node.nvdec else costs.decode_ms * costs.pixels(ask.size_hw)
    return decode + _write_ms(ask, costs)


def _write_ms(ask: Ask, costs: Costs) -> float:
    if ask.write == "out":
        return (costs.draw_ms + costs.encode_ms) * costs.pixels(ask.size_hw)
    return LABEL_MS if ask.write == "record" else 0.0


def _disk_bytes(ask: Ask, costs: Costs) -> float:
    """Bytes a second of one camera."""
    if ask.write == "out":
        return costs.out_bytes * costs.pixels(ask.size_hw) * ask.fps
    if ask.write == "record":
        labels = LABEL_BYTES * costs.model_hw[0] * costs.model_hw[1] / LABEL_PIXELS
        return ask.mbps * 1e6 / 8 + labels * ask.fps
    return 0.0


def _engines(ask: Ask, costs: Costs, node: Node) -> Engines:
    """How a node is shared between decoding (with writing) and the network."""
    share = costs.network_share(ask.size_hw)
    step_ms = (share * costs.step_ms[0], share * costs.step_ms[1])
    on_cores_ms = _decode_ms(ask, costs, node)
    servers, decode_ms = node.cores, on_cores_ms
    if node.nvdec:
        pixels = ask.size_hw[0] * ask.size_hw[1]
        servers, decode_ms = node.nvdec, 1000 * pixels / NVDEC_PIXELS / node.nvdec_fps
    if costs.on_device:
        return Engines(node.gpus, step_ms, STREAMS_A_STEP, servers, decode_ms)
    network_ms = costs.engine_cores * step_ms[1]
    decoding = max(1, math.ceil(node.cores * on_cores_ms / (on_cores_ms + network_ms)))
    if not node.nvdec:
        servers = decoding
    candidates = [
        _cpu_engines(network_ms, (node.cores - decoding) // count, count, servers, decode_ms)
        for count in range(1, max(1, node.cores - decoding) + 1)
    ]
    return max(candidates, key=lambda engines: (engines.cameras(ask.fps, ask.load), engines.count))


def _cpu_engines(
    network_ms: float, cores: int, count: int, servers: int, decode_ms: float
) -> Engines:
    """Engines of some cores each."""
    cores = min(max(cores, 1), MOST_ENGINE_CORES)
    spent_ms = network_ms * (SPLIT_COST if cores > 1 else 1.0)
    return Engines(count, (0.0, spent_ms / cores), 1, servers, decode_ms, cores)
