# Which slot boots: attempts are counted here, and a slot that was never confirmed is left by itself.
#
# Run this from `bootcmd` (mkimage -T script -d boot.cmd boot.scr); it leaves the chosen slot in `overhaul_slot` and
# changes nothing else. It needs an environment with two copies that U-Boot can save. With other slot names than A
# and B, name them in the lines marked "slots"; for a third slot repeat its block.
#
#   OVERHAUL_X_OK=1                    good: boots, is never counted
#   OVERHAUL_X_OK=0, OVERHAUL_X_TRY>0  trial: one attempt is taken away, durably, before it boots
#   OVERHAUL_X_OK=0, OVERHAUL_X_TRY=0  bad: passed over
#
# The same rules in Python: src/overhaul/install/countdown.py.

setenv overhaul_slot
setenv overhaul_last_resort
for overhaul_candidate in ${OVERHAUL_ORDER} A B; do                           # slots
  setenv overhaul_ok
  setenv overhaul_left
  if test "${overhaul_candidate}" = "A"; then                                 # slots
    setenv overhaul_ok "${OVERHAUL_A_OK}"                                     # slots
    setenv overhaul_left "${OVERHAUL_A_TRY}"                                  # slots
    # The first slot is good when nothing is known.
    if test -z "${overhaul_ok}"; then setenv overhaul_ok 1; fi
    if test -z "${overhaul_last_resort}"; then setenv overhaul_last_resort A; fi  # slots
  fi
  if test "${overhaul_candidate}" = "B"; then                                 # slots
    setenv overhaul_ok "${OVERHAUL_B_OK}"                                     # slots
    setenv overhaul_left "${OVERHAUL_B_TRY}"                                  # slots
    if test -z "${overhaul_last_resort}"; then setenv overhaul_last_resort B; fi  # slots
  fi
  if test -z "${overhaul_slot}"; then
    if test "${overhaul_ok}" = "1"; then
      setenv overhaul_slot "${overhaul_candidate}"
    else
      # Not every U-Boot can subtract: walk the digits, and remember the one before.
      setenv overhaul_fewer
      setenv overhaul_before 0
      for overhaul_digit in 1 2 3 4 5 6 7 8 9; do
        if test "${overhaul_left}" = "${overhaul_digit}"; then setenv overhaul_fewer "${overhaul_before}"; fi
        setenv overhaul_before "${overhaul_digit}"
      done
      if test -n "${overhaul_fewer}"; then
        setenv OVERHAUL_${overhaul_candidate}_TRY "${overhaul_fewer}"
        setenv overhaul_ok
        setenv overhaul_left
        setenv overhaul_fewer
        setenv overhaul_before
        # An attempt that cannot be counted is not made: it could be made for ever.
        if saveenv; then setenv overhaul_slot "${overhaul_candidate}"; fi
      fi
    fi
  fi
done
if test -z "${overhaul_slot}"; then setenv overhaul_slot "${overhaul_last_resort}"; fi
setenv overhaul_ok
setenv overhaul_left
setenv overhaul_fewer
setenv overhaul_before
setenv overhaul_last_resort
