"""Bytes from outside that nobody vouches for, thrown at everything that reads them.

What this folder promises of every reader of outside bytes: it gives a value, or an error of the family that its
documentation names, in one sentence that can be printed; it never raises anything else. It takes time and memory in
proportion to what it was given and to the limits it states, never to a number that stands in the bytes. Where a
value comes out, the value keeps what others rely on: offsets inside, sizes within bounds, paths below their root.

Digests and signatures are no excuse. Whoever steals a key can sign what is malformed, so most inputs here carry
right digests, and those of the trust room right signatures, too.

Inputs are random bytes, and real ones that were changed where it hurts (see `mutations`). A plain run draws the same
ones as the run before, so that what it refuses was changed in between; `FUZZ_TIMES=20` draws anew and looks so much
longer, and a failure prints the line that brings it back. What was found once stands below as an example with a name.
"""
