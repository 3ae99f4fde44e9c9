# Exports each finished image build to an OSTree repository that devices pull from.
#
#   IMAGE_CLASSES += "overhaul-ostree"
#   OSTREE_GPGDIR = "/secure/gnupg"
#   OSTREE_GPGID = "updates@example.org"
#   OSTREE_EXPORT = "/srv/ostree"
#
# The tree of an image is prepared and committed once; the same commit goes into the common repository, whose history
# it continues, and into the image's own, from which `ostree_device_root DIRECTORY` deploys the root of a device: to be
# called by the task that makes the disk. Needs `overhaul[publish]` on the build host, for the latter `ostree` as well
# (HOSTTOOLS), and the distro features `usrmerge` and `systemd`.

OSTREE_OS ?= "${DISTRO}"
OSTREE_BRANCHNAME ?= "${DISTRO}/${MACHINE}/${PN}"
OSTREE_COMMIT_SUBJECT ?= "Build ${BUILD_ID} of ${PN} in ${DISTRO}"
OSTREE_COMMIT_VERSION ?= "${DISTRO_VERSION}"
# The common repository that is served; both names are known. Empty: nothing is exported.
OSTREE_REPO ?= "${DEPLOY_DIR}/ostree-repo"
OSTREE_EXPORT ?= "${OSTREE_REPO}"
# The repository that has this build's commit alone; rebuilt with each build.
OSTREE_BARE ?= "${WORKDIR}/ostree-repo"
# Where devices pull from; empty: images know no remote.
OSTREE_REMOTE ?= "https://update.example.org/ostree/"
# There is no key by default: an image that nobody signed is refused, except where this says otherwise.
OSTREE_GPGDIR ?= ""
OSTREE_GPGID ?= ""
OSTREE_UNSIGNED ?= "0"
# Earlier commits that deltas are made from.
OSTREE_DELTAS ?= "1"
# `refkit` or `generic`: where state is kept.
OSTREE_LAYOUT ?= "refkit"

HOSTTOOLS += "overhaul gpg gpgconf gpg-agent"
# For `ostree_device_root` alone.
HOSTTOOLS_NONFATAL += "ostree"

OSTREE_VARIABLES = "OSTREE_OS OSTREE_BRANCHNAME OSTREE_COMMIT_SUBJECT OSTREE_COMMIT_VERSION OSTREE_EXPORT OSTREE_REMOTE \
    OSTREE_GPGDIR OSTREE_GPGID OSTREE_UNSIGNED OSTREE_DELTAS OSTREE_LAYOUT"

python () {
    features = (d.getVar("DISTRO_FEATURES") or "").split()
    for feature in ("usrmerge", "systemd"):
        if feature not in features:
            bb.fatal("overhaul-ostree needs the distro feature %s: add it to DISTRO_FEATURES." % feature)
    for name in ("OSTREE_OS", "OSTREE_BRANCHNAME", "OSTREE_EXPORT", "OSTREE_REMOTE", "OSTREE_GPGDIR", "OSTREE_GPGID"):
        if len((d.getVar(name) or "").split()) > 1:
            bb.fatal("%s must not hold blanks: %r" % (name, d.getVar(name)))
    if not d.getVar("OSTREE_GPGID") and d.getVar("OSTREE_UNSIGNED") != "1":
        raise bb.parse.SkipRecipe("OSTREE_GPGID is empty: name a signing key, or set OSTREE_UNSIGNED to 1")
}

fakeroot do_ostree_export () {
    if [ -z "${OSTREE_EXPORT}" ]; then
        bbnote "OSTREE_EXPORT is empty: nothing is exported."
        exit 0
    fi
    set --
    if [ "${OSTREE_UNSIGNED}" = "1" ] && [ -z "${OSTREE_GPGID}" ]; then
        set -- --unsigned
    fi
    # bitbake gives every image one SOURCE_DATE_EPOCH, of 2011. A commit has the time of its build: pruning keeps what
    # is young by it, and an unchanged tree makes no commit anyway.
    unset SOURCE_DATE_EPOCH
    OSTREE_GPGDIR="${OSTREE_GPGDIR}" OSTREE_GPGID="${OSTREE_GPGID}" OSTREE_EXPORT="${OSTREE_EXPORT}" \
    overhaul ostree commit "${IMAGE_ROOTFS}" \
        --branch "${OSTREE_BRANCHNAME}" \
        --image-repository "${OSTREE_BARE}" \
        --subject "${OSTREE_COMMIT_SUBJECT}" \
        --version "${OSTREE_COMMIT_VERSION}" \
        --layout "${OSTREE_LAYOUT}" \
        --deltas "${OSTREE_DELTAS}" \
        "$@"
}
# Lay out the root of a device in the new directory $1, below fakeroot, when the image is exported. Its `var` and `home`
# are the image's once and never touched by updates.
ostree_device_root () {
    ostree_state="$1/ostree/deploy/${OSTREE_OS}/var"
    mkdir -p "$1"
    ostree admin init-fs "$1"
    ostree admin os-init --sysroot="$1" "${OSTREE_OS}"
    ostree pull-local --repo="$1/ostree/repo" --remote=updates "${OSTREE_BARE}" "${OSTREE_BRANCHNAME}"
    ostree admin deploy --sysroot="$1" --os="${OSTREE_OS}" "updates:${OSTREE_BRANCHNAME}"
    rm -rf "$ostree_state"
    cp -a "${IMAGE_ROOTFS}/var" "$ostree_state"
    ostree_home="$1/home"
    if [ "${OSTREE_LAYOUT}" != "refkit" ]; then
        ostree_home="$ostree_state/home"
    fi
    mkdir -p "$1/boot/efi" "$ostree_home"
    cp -a "${IMAGE_ROOTFS}/home/." "$ostree_home"
    if [ -n "${OSTREE_REMOTE}" ] && [ -n "${OSTREE_GPGID}" ]; then
        OSTREE_GPGDIR="${OSTREE_GPGDIR}" OSTREE_GPGID="${OSTREE_GPGID}" \
        overhaul ostree remote --into "$1/ostree/repo" --url "${OSTREE_REMOTE}"
    elif [ -n "${OSTREE_REMOTE}" ]; then
        ostree remote add --repo="$1/ostree/repo" --no-gpg-verify updates "${OSTREE_REMOTE}"
    fi
}

do_ostree_export[vardeps] += "${OSTREE_VARIABLES}"
do_ostree_export[lockfiles] = "${TMPDIR}/overhaul-ostree.lock"
do_ostree_export[depends] += "virtual/fakeroot-native:do_populate_sysroot"
# After all that changes the root file system, beside the making of disk images.
addtask ostree_export after do_rootfs do_image before do_image_complete
