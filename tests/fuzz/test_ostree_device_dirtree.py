"""The quick reader of directory objects says what the decoder says, or leaves it to the decoder."""

from hypothesis import given
from hypothesis import strategies as st

from overhaul.dialects.ostree.errors import MalformedOstreeDataError
from overhaul.dialects.ostree.gvariant import decode
from overhaul.dialects.ostree.objects import Dirtree, TreeDirectory, TreeFile, decode_dirtree, encode_dirtree

_NAME = st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=60)
_CHECKSUM = st.binary(min_size=32, max_size=32)
_TREES = st.sets(_NAME.filter(lambda name: name not in (".", "..")), max_size=14).flatmap(
    lambda names: st.tuples(
        st.just(sorted(names)), st.integers(0, len(names)), st.lists(_CHECKSUM, min_size=28, max_size=28)
    )
)


def made(parts: tuple[list[str], int, list[bytes]]) -> Dirtree:
    names, cut, sums = parts
    files = tuple(TreeFile(name, sums[place]) for place, name in enumerate(names[:cut]))
    folders = tuple(TreeDirectory(name, sums[2 * place], sums[2 * place + 1]) for place, name in enumerate(names[cut:]))
    return Dirtree(
        tuple(sorted(files, key=lambda entry: entry.name.encode())),
        tuple(sorted(folders, key=lambda entry: entry.name.encode())),
    )


@given(_TREES)
def test_every_directory_is_read_as_it_was_written(parts: tuple[list[str], int, list[bytes]]) -> None:
    tree = made(parts)
    assert decode_dirtree(encode_dirtree(tree)) == tree


@given(_TREES, st.data())
def test_a_damaged_directory_is_read_as_the_decoder_reads_it(
    parts: tuple[list[str], int, list[bytes]], data: st.DataObject
) -> None:
    raw = bytearray(encode_dirtree(made(parts)))
    place = data.draw(st.integers(0, len(raw) - 1))
    if data.draw(st.booleans()):
        raw[place] ^= 1 << data.draw(st.integers(0, 7))
    else:
        del raw[place:]
    try:
        tree = decode_dirtree(bytes(raw))
    except MalformedOstreeDataError:
        return
    files, folders = decode("(a(say)a(sayay))", bytes(raw), what="dirtree")
    assert (tuple(tree.files), tuple(tree.directories)) == (tuple(files), tuple(folders))
