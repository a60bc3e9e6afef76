"""The packed row against hand-derived rows, and against its own padded form."""

import hashlib
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest

from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.tokens.pack import Segment, pack, unpack
from random_groups import store, written


def ids(*values: int) -> np.ndarray:
    return np.asarray(values, np.int32)


def test_a_row_laid_out_by_hand() -> None:
    first = PromptGroup(
        ids(1, 2), (ids(3, 4, 5), ids(6)), (np.array([True, False, True]), np.array([True])), weight=2.0
    )
    second = PromptGroup(ids(7), (ids(8), ids(9, 10)), (np.array([True]), np.array([True, True])), label=0.5)
    batch = pack([first, second], [11, 12])
    #                                   prompt  c1       c2 | p  c1  c2
    assert batch.tokens_T.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]
    assert batch.positions_T.tolist() == [0, 1, 2, 3, 4, 2, 0, 1, 1, 2]
    # Token 3 is predicted by the last prompt token (row 1), 5 by row 3; 4 is masked. 6 again by row 1. 10 by row 8.
    assert batch.target_N.tolist() == [3, 5, 6, 8, 9, 10]
    assert batch.predictor_N.tolist() == [1, 3, 1, 6, 6, 8]
    assert batch.owner_N.tolist() == [0, 0, 1, 2, 3, 3]
    assert batch.last_C.tolist() == [4, 5, 7, 9]
    assert batch.scored_C.tolist() == [2, 1, 1, 2]
    assert batch.segments == (Segment(0, 5, 0, 0), Segment(5, 6, 0, 2), Segment(6, 8, 6, 6), Segment(8, 10, 6, 7))
    assert batch.weight_G.tolist() == [2.0, 1.0]
    assert batch.label_G.tolist() == [1.0, 0.5]
    assert batch.index_G.tolist() == [11, 12]


@pytest.mark.parametrize("k", [1, 2, 4])
def test_padded_rows_hold_the_same_targets(k: int) -> None:
    groups = store(7, k, partly=True)
    batch = pack(groups)
    rows = unpack(batch, pad_id=0)
    assert rows.ids_CL.shape[0] == 7 * k
    at = 0
    for g in groups:
        for completion in g.completions:
            whole = [*g.prompt, *completion]
            assert rows.ids_CL[at, : len(whole)].tolist() == whole
            assert rows.mask_CL[at].sum() == len(whole)
            assert not rows.ids_CL[at, len(whole) :].any()
            at += 1
    # What stands right after a predictor is its target.
    assert rows.ids_CL[rows.row_N, rows.column_N + 1].tolist() == batch.target_N.tolist()


def test_mixed_numbers_of_completions_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot share a batch"):
        pack([store(1, 1)[0], store(1, 2)[0]])


def test_a_store_returns_what_it_was_given() -> None:
    groups = list(store(9, 2, partly=True))
    built = GroupStore.build(groups, 2)
    assert len(built) == 9
    for old, new in zip(groups, built, strict=True):
        assert old.prompt.tolist() == new.prompt.tolist()
        assert [c.tolist() for c in old.completions] == [c.tolist() for c in new.completions]
        assert [m.tolist() for m in old.masks] == [m.tolist() for m in new.masks]
        assert (old.weight, old.label, old.source) == (new.weight, new.label, new.source)
    assert built.lengths.tolist() == [g.length for g in groups]
    assert built.select([3, 1])[1].source == "random:1"


def test_a_store_on_disk_is_the_one_in_memory(tmp_path) -> None:
    groups = list(store(9, 2, partly=True))
    built, on_disk = GroupStore.build(groups, 2), written(iter(groups), 2, tmp_path)
    assert str(list(on_disk)) == str(list(built)) == str(list(GroupStore.open(tmp_path, 2)))
    assert on_disk.fingerprint() == built.fingerprint()
    assert len(GroupStore.build([], 2)) == 0


def test_a_store_on_disk_is_read_not_mapped_and_goes_to_another_process(tmp_path) -> None:
    groups = list(store(9, 2, partly=True))
    on_disk = written(iter(groups), 2, tmp_path)
    assert str(list(on_disk)) == str(groups)
    held = Path("/proc/self/maps").read_text() if Path("/proc/self/maps").exists() else ""
    assert str(tmp_path) not in held
    sent = pickle.loads(pickle.dumps(on_disk.select([8, 0])))
    assert str(list(sent)) == str([groups[8], groups[0]])


def test_hashes_are_those_that_caches_hold() -> None:
    """Of the bytes of int32 words: a prompt's for its key; sizes, ids, then the answers' masks for the digest."""
    groups = list(store(5, 2, partly=True))
    built, digests = GroupStore.build(groups, 2), b""
    for g, key in zip(groups, built.prompt_keys, strict=True):
        ids = [g.prompt.tolist(), *(c.tolist() for c in g.completions)]
        assert (
            struct.pack("<q", key) == hashlib.blake2b(struct.pack(f"<{len(ids[0])}i", *ids[0]), digest_size=8).digest()
        )
        words = [*map(len, ids), *(i for part in ids for i in part), *(int(b) for m in g.masks for b in m)]
        digests += hashlib.blake2b(struct.pack(f"<{len(words)}i", *words), digest_size=16).digest()
    assert built.fingerprint() == hashlib.blake2b(digests, digest_size=16).hexdigest()


def test_chunks_do_not_matter(monkeypatch) -> None:
    groups = list(store(9, 2, partly=True))
    whole = GroupStore.build(groups, 2)
    monkeypatch.setattr("prefiere.tokens.groups._CHUNK", 2)
    parts = GroupStore.build(groups, 2)
    assert str(list(parts)) == str(list(whole))
    assert parts.fingerprint() == whole.fingerprint()


def test_a_part_is_what_a_store_of_its_groups_would_be() -> None:
    groups = store(12, 2, partly=True)
    part = groups.select([7, 2, 2, 11]).select([3, 0, 1])
    alone = GroupStore.build([groups[11], groups[7], groups[2]], 2)
    assert str(list(part)) == str(list(alone))
    assert part.fingerprint() == alone.fingerprint() != groups.fingerprint()
    assert part.lengths.tolist() == alone.lengths.tolist()
    assert part.prompt_keys.tolist() == alone.prompt_keys.tolist()
    assert part.counts(np.asarray([2, 0])) == alone.counts(np.asarray([2, 0]))
    assert part[-1].source == "random:2"
    with pytest.raises(IndexError):
        part[3]


def test_counts_are_weighted_sums() -> None:
    groups = store(5, 2, partly=True)
    at = np.asarray([4, 0, 2])
    picked = [groups[int(i)] for i in at]
    counts = groups.counts(at)
    assert counts["groups"] == 3
    assert counts["weight"] == pytest.approx(sum(g.weight for g in picked))
    assert counts["tokens"] == pytest.approx(sum(g.weight * sum(sum(m) for m in g.masks) for g in picked))


def test_the_fingerprint_sees_where_a_completion_begins() -> None:
    one = GroupStore.build([PromptGroup(ids(1, 2), (ids(3),), (np.array([True]),))], 1)
    other = GroupStore.build([PromptGroup(ids(1), (ids(2, 3),), (np.array([True, True]),))], 1)
    assert one.fingerprint() != other.fingerprint()


@pytest.mark.parametrize("prompt", [ids(), ids(1)])
def test_empty_parts_are_refused(prompt: np.ndarray) -> None:
    with pytest.raises(ValueError, match="empty prompt or completion"):
        GroupStore.build([PromptGroup(prompt, (ids(),), (np.zeros(0, bool),), source="f:3")], 1)


def test_what_looks_things_up_on_the_host_stays_there() -> None:
    """Reading it back from a device would wait for all that was asked of the device before."""
    there = pack(list(store(1, 2)), [7]).to("meta")
    assert there.tokens_T.device.type == "meta"
    assert there.index_G.tolist() == [7]


def test_a_file_of_ids_that_is_cut_short_is_named(tmp_path) -> None:
    written(store(4, 2), 2, tmp_path)
    opened = GroupStore.open(tmp_path, 2)
    path = tmp_path / "tokens.bin"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(OSError, match=r"tokens\.bin is cut short"):
        opened[3]
