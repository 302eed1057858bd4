"""The segmenter and its batches: each stream's labels are its own, however frames are batched."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from pipeline.batch import Batcher, Request
from pipeline.engines.counting import CountingEngine
from pipeline.frames import EndOfStream, FrameBatch, FrameItem, Gap, LabelBatch
from pipeline.segmenter import Segmenter
from tests.streams import batches, frame_pixels, stream_info

SIZE = (32, 48)


class RecordingEngine(CountingEngine):
    """Counts, and remembers how many streams each call had."""

    def __init__(self, model_hw: tuple[int, int], slots: int) -> None:
        super().__init__(model_hw, slots)
        self.batch_sizes: list[int] = []

    def step(self, frames: np.ndarray, slots: Sequence[int], reset: Sequence[bool]) -> np.ndarray:
        self.batch_sizes.append(len(frames))
        return super().step(frames, slots, reset)


def labels_of(segmenter: Segmenter, items: Iterator[FrameItem]) -> np.ndarray:
    return np.concatenate([b.labels for b in segmenter.labels(items) if isinstance(b, LabelBatch)])


def alone(seed: int, frames: int) -> np.ndarray:
    """Labels of a stream on its own, a frame at a time."""
    segmenter = Segmenter(lambda hw: CountingEngine(hw, 1))
    return labels_of(segmenter, batches(stream_info("x"), frame_pixels(seed, frames), 1))


@pytest.mark.parametrize("chunk", [1, 3, 8])
def test_chunks_do_not_change_labels(chunk: int) -> None:
    segmenter = Segmenter(lambda hw: CountingEngine(hw, 1))
    found = labels_of(segmenter, batches(stream_info("a"), frame_pixels(1, 21), chunk))
    np.testing.assert_array_equal(found, alone(1, 21))


@pytest.mark.parametrize("slots", [8, 3])
@pytest.mark.parametrize("chunk", [1, 8])
def test_eight_streams_at_once_are_labelled_as_if_alone(chunk: int, slots: int) -> None:
    segmenter = Segmenter(lambda hw: CountingEngine(hw, slots), window_seconds=0.02)
    found: dict[int, np.ndarray] = {}

    def follow(seed: int) -> None:
        items = batches(stream_info(f"s{seed}"), frame_pixels(seed, 20 + seed), chunk)
        found[seed] = labels_of(segmenter, items)

    threads = [threading.Thread(target=follow, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for seed in range(8):
        np.testing.assert_array_equal(found[seed], alone(seed, 20 + seed), err_msg=f"stream {seed}")


def test_streams_share_batches_and_a_slow_one_holds_nobody() -> None:
    """The slow one gives its second frame only when the others have ended: if they waited, all hung."""
    engine = RecordingEngine(SIZE, 4)
    segmenter = Segmenter(lambda hw: engine, window_seconds=0.1)
    met, others = threading.Barrier(3), threading.Barrier(3)

    def follow(name: str) -> None:
        def items() -> Iterator[FrameItem]:
            for number, item in enumerate(batches(stream_info(name), frame_pixels(1, 12), 1)):
                if number == 1:
                    met.wait(30)
                    if name == "slow":
                        others.wait(30)
                yield item

        labels_of(segmenter, items())
        if name != "slow":
            others.wait(30)

    threads = [threading.Thread(target=follow, args=(name,)) for name in ("a", "b", "slow")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert max(engine.batch_sizes) >= 2
    assert sum(engine.batch_sizes) == 36


def test_a_gap_resets_and_steps_say_so() -> None:
    stream, pixels = stream_info("a"), frame_pixels(1, 4)

    def items() -> Iterator[FrameItem]:
        yield from batches(stream, pixels, 2, end=False)
        yield Gap(stream, 4, None, "cut")
        yield from batches(stream, pixels, 2)

    found = list(Segmenter(lambda hw: CountingEngine(hw, 1)).labels(items()))
    steps = [b.steps.tolist() for b in found if isinstance(b, LabelBatch)]
    assert steps == [[1, 2], [3, 4], [1, 2], [3, 4]]
    assert [type(item) for item in found[-1:]] == [EndOfStream]
    np.testing.assert_array_equal(found[0].labels, found[3].labels)  # type: ignore[union-attr]


def test_stamps_travel_untouched_and_slots_come_free() -> None:
    made: list[CountingEngine] = []

    def make(hw: tuple[int, int]) -> CountingEngine:
        made.append(CountingEngine(hw, 1))
        return made[-1]

    segmenter = Segmenter(make)
    for name in ("a", "b", "c"):
        items = list(batches(stream_info(name), frame_pixels(1, 5), 2))
        found = list(segmenter.labels(iter(items)))
        for before, after in zip(items[:-1], found[:-1], strict=True):
            assert isinstance(before, FrameBatch)
            assert isinstance(after, LabelBatch)
            assert (after.stream, after.frame_index, after.pts, after.decoded_at) == (
                before.stream, before.frame_index, before.pts, before.decoded_at,
            )  # fmt: skip
            assert after.labelled_at >= before.decoded_at[-1]
        assert found[0].steps.tolist() == [1, 2]  # type: ignore[union-attr]
    assert len(made) == 1


def test_an_engine_error_reaches_every_stream_of_its_batch() -> None:
    def broken(batch: list[Request]) -> None:
        raise RuntimeError("device lost")

    batcher = Batcher(broken, largest=4, window_seconds=0.2)
    errors: list[str] = []

    def submit(name: str) -> None:
        batcher.join(name)
        item = next(batches(stream_info(name), frame_pixels(1, 1), 1))
        assert isinstance(item, FrameBatch)
        try:
            batcher.submit(item)
        except RuntimeError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=submit, args=(name,)) for name in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert errors == ["device lost"] * 3


def test_closing_the_labels_closes_the_frames() -> None:
    closed = []

    def endless() -> Iterator[FrameItem]:
        try:
            yield from batches(stream_info("a"), frame_pixels(1, 100), 1)
        finally:
            closed.append(True)

    labels = Segmenter(lambda hw: CountingEngine(hw, 1)).labels(endless())
    next(labels)
    labels.close()  # type: ignore[attr-defined]
    assert closed == [True]
