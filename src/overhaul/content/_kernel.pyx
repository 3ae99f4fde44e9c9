# cython: language_level=3, boundscheck=False, wraparound=False, cdivision=True
"""The compiled twins of `chunker.cut_python` and `delta.covers.correct_python`: the same results, much faster.

The interpreter's lock is released while they work. Four things make cutting fast, and none changes a result:
hashing starts one window below the minimum size; the table of leaving bytes is rotated beforehand; a
multiplication with the discriminator's inverse modulo 2^32 spares nearly every division; eight bytes go round the
loop at once.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AsString, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy

from overhaul.content.buzhash_table import TABLE

cdef enum:
    WINDOW_SIZE = 48

cdef uint32_t entering[256]
cdef uint32_t leaving[256]

for _value in range(256):
    entering[_value] = TABLE[_value]
    # 48 rotations of a 32-bit word are 16.
    leaving[_value] = (entering[_value] << 16) | (entering[_value] >> 16)


cdef inline uint32_t _roll(uint32_t rolling, const uint8_t* at) noexcept nogil:
    # The brackets matter: only a rotation and one XOR of each step have to wait for the step before.
    return ((rolling << 1) | (rolling >> 31)) ^ (leaving[(at - WINDOW_SIZE)[0]] ^ entering[at[0]])


cdef Py_ssize_t _scan(const uint8_t* data, Py_ssize_t end, Py_ssize_t limit, uint32_t discriminator) noexcept nogil:
    cdef uint32_t wanted = discriminator - 1
    cdef uint32_t rolling = 0
    cdef uint32_t odd = discriminator
    cdef uint32_t inverse, shift, greatest
    cdef Py_ssize_t position
    cdef int step

    while odd % 2 == 0:
        odd >>= 1
    inverse = odd
    # Newton's iteration: right in 3 bits at first, in twice as many after each step.
    for step in range(4):
        inverse *= 2 - odd * inverse
    # (hash - wanted) is a multiple of `odd` only if its product with the inverse is at most the greatest
    # quotient. The few hashes that pass (wrapped ones, multiples of `odd` alone) meet the real test.
    shift = wanted * inverse
    greatest = <uint32_t>0xFFFFFFFF // odd

    for position in range(end - WINDOW_SIZE, end):
        rolling = ((rolling << 1) | (rolling >> 31)) ^ entering[data[position]]
    # The compiler unrolls the inner loop. The bound makes sure that a step is never beyond `limit`.
    while limit - end > 8:
        for step in range(8):
            if rolling * inverse - shift <= greatest and rolling % discriminator == wanted:
                return end + step
            rolling = _roll(rolling, data + end + step)
        end += 8
    while end < limit:
        if rolling * inverse - shift <= greatest and rolling % discriminator == wanted:
            return end
        rolling = _roll(rolling, data + end)
        end += 1
    return limit


def cut(data, Py_ssize_t start, Py_ssize_t minimum, uint32_t discriminator, Py_ssize_t maximum):
    """Return the offset in `data` at which the chunk that begins at `start` ends."""
    cdef Py_buffer view
    cdef Py_ssize_t limit, end
    if not 0 <= start or not WINDOW_SIZE <= minimum <= maximum or discriminator < 2:
        raise ValueError("start or chunk sizes are out of bounds")
    PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
    try:
        limit = view.len if view.len - start < maximum else start + maximum
        end = start + minimum
        if end >= limit:
            return limit
        with nogil:
            end = _scan(<const uint8_t*>view.buf, end, limit, discriminator)
        return end
    finally:
        PyBuffer_Release(&view)


cdef Py_ssize_t _correct(
    uint8_t* base,
    Py_ssize_t base_size,
    const uint8_t* difference,
    Py_ssize_t difference_size,
    const uint32_t* kept,
    const uint32_t* corrected,
    Py_ssize_t count,
) noexcept nogil:
    """Return how many corrections were made: fewer than `count` when the next would leave one of the strings."""
    cdef Py_ssize_t position = 0
    cdef Py_ssize_t used = 0
    cdef Py_ssize_t number, place, size
    for number in range(count):
        size = corrected[number]
        position += kept[number]
        if position + size > base_size or used + size > difference_size:
            return number
        for place in range(size):
            base[position + place] += difference[used + place]
        position += size
        used += size
    return count


def correct(bytes base, bytes difference, kept, corrected):
    """Return `base` with `difference` added to the bytes that `kept` and `corrected` (u32) lead to."""
    cdef Py_buffer leave, mend
    cdef Py_ssize_t base_size = len(base), difference_size = len(difference), count, done
    # A string nobody else has seen yet may be written to. One made from bytes may have been seen: the interpreter
    # shares all strings of a single byte. One made without is always new.
    cdef bytes result = PyBytes_FromStringAndSize(NULL, base_size)
    cdef uint8_t* into = <uint8_t*>PyBytes_AsString(result)
    cdef const uint8_t* added = <const uint8_t*>PyBytes_AsString(difference)
    memcpy(into, PyBytes_AsString(base), base_size)
    PyObject_GetBuffer(kept, &leave, PyBUF_SIMPLE)
    try:
        PyObject_GetBuffer(corrected, &mend, PyBUF_SIMPLE)
        try:
            count = leave.len // <Py_ssize_t>sizeof(uint32_t)
            if leave.len != mend.len:
                raise ValueError("the two columns do not belong together")
            with nogil:
                done = _correct(
                    into, base_size, added, difference_size,
                    <const uint32_t*>leave.buf, <const uint32_t*>mend.buf, count,
                )
            if done != count:
                raise ValueError("the corrections do not fit")
        finally:
            PyBuffer_Release(&mend)
    finally:
        PyBuffer_Release(&leave)
    return result
