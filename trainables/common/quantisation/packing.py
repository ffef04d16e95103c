"""A quantised network in one small file: the codebook, and every weight as the Huffman code of its place in it.

    python platform/train.py --from SWEEP --export best/
    python -m trainables.common.quantisation.packing pack best/network.safetensors best/network.packed
    python -m trainables.common.quantisation.packing unpack best/network.packed network.safetensors

What comes back has the same bits; `recipe.model.weights=network.safetensors` takes it. The file, all little-endian:

    8 bytes   "PHAROSQ1"
    8 bytes   length of the header
    header    JSON: names and shapes of the quantised tensors, and the lengths of what follows
    codebook  fp32, (k,)
    lengths   uint8, (k,): of each value's code, in bits; the codes are the canonical ones of these lengths
    blocks    uint32, (b,): bits of each block of 2,048 weights, so that blocks are read side by side
    codes     the weights' codes, first bit first
    others    safetensors: what is not quantised
"""

from __future__ import annotations

import argparse
import json
import struct
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pharos.errors import InputError
from trainables.common.quantisation.fixing import MASK, VALUE
from trainables.common.quantisation.measures import huffman_lengths

_MAGIC = b"PHAROSQ1"
_BLOCK = 2048
_LONGEST = 57  # bits that a window of 8 bytes has at any bit of its first

Bits = npt.NDArray[np.uint64]
Counts = npt.NDArray[np.int64]


def pack(state: Mapping[str, Tensor], names: Sequence[str]) -> bytes:
    """A network's state in the format above.

    Args:
        state: By name.
        names: The quantised tensors, fp32.
    """
    from safetensors.torch import save

    parts = [state[name].detach().cpu().contiguous() for name in names]
    weights = np.concatenate([part.numpy().reshape(-1) for part in parts]).view(np.uint32)
    values, symbols, counts = np.unique(weights, return_inverse=True, return_counts=True)
    lengths = huffman_lengths(counts.astype(np.int64))
    codes = _canonical(lengths)
    stream, blocks = _encode(symbols.reshape(-1), codes, lengths)
    kept = {name: value.detach().cpu().contiguous() for name, value in state.items() if name not in set(names)}
    sections = [
        values.astype("<u4").tobytes(),
        lengths.astype(np.uint8).tobytes(),
        blocks.astype("<u4").tobytes(),
        stream,
        save(kept),
    ]
    header = {
        "tensors": [[name, list(part.shape)] for name, part in zip(names, parts, strict=True)],
        "sections": [len(section) for section in sections],
    }
    text = json.dumps(header).encode()
    return b"".join([_MAGIC, struct.pack("<Q", len(text)), text, *sections])


def unpack(data: bytes) -> dict[str, Tensor]:
    """The state that was packed, the same bits.

    Raises:
        InputError: The file is another, or is cut off.
    """
    from safetensors.torch import load

    try:
        if data[:8] != _MAGIC:
            raise ValueError("it does not begin with PHAROSQ1")
        (size,) = struct.unpack_from("<Q", data, 8)
        header: Any = json.loads(data[16 : 16 + size])
        ends = 16 + size + np.cumsum([0, *header["sections"]])
        if ends[-1] != len(data):
            raise ValueError(f"it should have {ends[-1]} bytes and has {len(data)}")
        values, lengths, blocks, stream, others = (
            data[start:end] for start, end in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True)
        )
        shapes = [tuple(shape) for _, shape in header["tensors"]]
        counts = [int(np.prod(shape)) for shape in shapes]
        symbols = _decode(
            stream, np.frombuffer(lengths, np.uint8).astype(np.int64), np.frombuffer(blocks, "<u4"), sum(counts)
        )
        weights = np.frombuffer(values, "<u4").astype(np.uint32)[symbols].view(np.float32)
        state: dict[str, Tensor] = load(others)
    except (ValueError, KeyError, TypeError, IndexError, struct.error) as error:
        raise InputError(f"not a packed network: {error}") from None
    for (name, _), shape, part in zip(
        header["tensors"], shapes, np.split(weights, np.cumsum(counts)[:-1]), strict=True
    ):
        state[name] = torch.from_numpy(part.copy()).reshape(shape)
    return state


def plain(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """The state of a network with fixable layers as that of a plain one, and the names of its quantised tensors.

    Raises:
        InputError: A weight is not fixed, or none is fixable.
    """
    names = [name.removesuffix(MASK) for name in state if name.endswith(MASK)]
    free = sum(int((~state[name + MASK]).sum()) for name in names)
    if not names or free:
        raise InputError(f"{free} weights are not fixed: a network is packed when its last round is over")
    dropped = {name + end for name in names for end in (MASK, VALUE)}
    whole = {name: value for name, value in state.items() if name not in dropped}
    return whole | {name: state[name + VALUE] for name in names}, names


def _canonical(lengths: Counts) -> Bits:
    """The canonical Huffman codes of these lengths: ordered by length, then by symbol."""
    codes = np.zeros(len(lengths), np.uint64)
    code, before = 0, 0
    for symbol in np.lexsort((np.arange(len(lengths)), lengths)).tolist():
        code <<= int(lengths[symbol]) - before
        before = int(lengths[symbol])
        codes[symbol] = code
        code += 1
    return codes


def _encode(symbols: Counts, codes: Bits, lengths: Counts) -> tuple[bytes, Counts]:
    """The stream of codes, and the bits of each block."""
    sizes = lengths[symbols]
    blocks = np.add.reduceat(sizes, np.arange(0, len(sizes), _BLOCK))
    ends = np.cumsum(sizes)
    bits = np.zeros(int(ends[-1]), np.uint8)
    for place in range(int(lengths.max())):
        # The place-th bit from the left of every code that is long enough.
        has = lengths > place
        bit = np.zeros(len(codes), np.uint8)
        bit[has] = (codes[has] >> (lengths[has] - 1 - place).astype(np.uint64)) & np.uint64(1)
        is_set = bit[symbols] == 1
        bits[(ends - sizes)[is_set] + place] = 1
    return np.packbits(bits).tobytes(), blocks


def _decode(stream: bytes, lengths: Counts, blocks: npt.NDArray[np.uint32], count: int) -> Counts:
    """The symbols of a stream: the first of each block, then the second of each, and so on."""
    if not len(lengths) or lengths.min() < 1 or lengths.max() > _LONGEST or len(blocks) != -(-count // _BLOCK):
        raise ValueError("its code lengths or blocks are impossible")
    data = np.frombuffer(stream + bytes(16), np.uint8)
    order = np.lexsort((np.arange(len(lengths)), lengths))
    sorted_lengths = lengths[order]
    # The first code of each length, at the left of 57 bits: what is at least that, and below the next, is as long.
    used, first = np.unique(sorted_lengths, return_index=True)
    codes = _canonical(lengths)[order[first]]
    starts = codes << (_LONGEST - used).astype(np.uint64)
    places = np.cumsum(blocks.astype(np.int64)) - blocks
    symbols = np.zeros((len(blocks), _BLOCK), np.int64)
    for step in range(min(_BLOCK, count)):
        if step and count - (len(blocks) - 1) * _BLOCK == step:  # the last block is over
            places = places[:-1]
            if not len(places):
                break
        window = np.zeros(len(places), np.uint64)
        byte = places >> 3
        for offset in range(8):
            window = (window << np.uint64(8)) | data[byte + offset]
        window = (window << (places & 7).astype(np.uint64)) >> np.uint64(64 - _LONGEST)
        row = np.searchsorted(starts, window, "right") - 1
        above = (window - starts[row]) >> (_LONGEST - used[row]).astype(np.uint64)
        symbols[: len(places), step] = order[first[row] + above.astype(np.int64)]
        places = places + used[row]
    return symbols.reshape(-1)[:count]


def main() -> int:
    """Packs an exported network, or unpacks one."""
    from safetensors.torch import load_file, save_file

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("action", choices=("pack", "unpack"))
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    options = parser.parse_args()
    try:
        if not options.source.is_file():
            raise InputError(f"{options.source}: no such file")
        if options.action == "pack":
            state, names = plain(load_file(options.source))
            data = pack(state, names)
            options.target.write_bytes(data)
            fp32 = 4 * sum(value.numel() for value in state.values())
            print(f"{options.target}: {len(data):,} bytes, {fp32 / len(data):.1f} times less than {fp32:,} in fp32")
        else:
            save_file(unpack(options.source.read_bytes()), options.target)
            print(f"{options.target}: {options.target.stat().st_size:,} bytes")
    except InputError as error:
        print(f"{Path(sys.argv[0]).name}: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
