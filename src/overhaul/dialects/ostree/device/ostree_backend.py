"""The `ostree` program as back end, where the device has it: for boot loaders and labels that only it knows.

The commit is judged by our own code first, so that a bad signature, an old commit or a refused one is told apart
from a broken network; the program then fetches exactly that commit, and verifies it once more by itself.
"""

import re
import tempfile
from pathlib import Path

from overhaul.dialects.ostree.device.backend import Refusal
from overhaul.dialects.ostree.device.barerepo import BareRepository
from overhaul.dialects.ostree.device.composefs import has_image
from overhaul.dialects.ostree.device.deploying import DeployChoices, make_default, preview
from overhaul.dialects.ostree.device.etcmerge import ConfigurationConflictError, MergePlan
from overhaul.dialects.ostree.device.head import fetch_commit
from overhaul.dialects.ostree.device.keyfile import KeyFile
from overhaul.dialects.ostree.device.limits import UnusableTreeError, needs_image
from overhaul.dialects.ostree.device.pull import Pulled, find_head, seen_now
from overhaul.dialects.ostree.device.remote import load_remote
from overhaul.dialects.ostree.device.seen import SeenSummary
from overhaul.dialects.ostree.device.sysroot import Deployment, Origin, Sysroot, merge_deployment
from overhaul.dialects.ostree.objects import ObjectName, ObjectType
from overhaul.errors import DeviceError, NetworkError
from overhaul.host.processes import ProgramFailedError, run
from overhaul.transfer.fetcher import Fetcher

_VERSION = re.compile(rb"(20\d\d)\.(\d+)")
#: Of `ostree`: it makes composefs images, or refuses to deploy what needs one.
_FIRST_WITH_IMAGES = (2023, 8)


class OstreePullError(NetworkError):
    """`ostree pull` did not get the commit."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"ostree could not pull the commit ({reason}); run the command again to go on.")


class OstreeDeployError(DeviceError):
    """`ostree admin` did not change the deployments."""

    def __init__(self, *, reason: str) -> None:
        self.reason = reason
        super().__init__(f"ostree could not change the deployments ({reason}); mend it and run the command again.")


class OstreeBackend:
    """Has `ostree` pull and deploy."""

    name = "ostree"

    def __init__(
        self,
        sysroot: Sysroot,
        repository: BareRepository,
        *,
        fetcher: Fetcher,
        choices: DeployChoices,
        uses_deltas: bool = True,
        root: Path = Path("/"),
    ) -> None:
        self._sysroot = sysroot
        self._repository = repository
        self._fetcher = fetcher
        self._choices = choices
        self._uses_deltas = uses_deltas
        self._root = root

    def deployments(self) -> tuple[Deployment, ...]:
        """Return what the boot loader can start, the default first."""
        return self._sysroot.deployments()

    def pull(
        self, origin: Origin, *, known_timestamp: int | None, refused: Refusal, seen: SeenSummary | None = None
    ) -> Pulled:
        """Bring the origin's commit into the repository, verified and whole; `seen` is what the last pull returned."""
        repository = self._repository
        remote = load_remote(repository, origin.remote, root=self._root)
        head = find_head(
            self._fetcher,
            repository,
            remote,
            origin.branch,
            known_timestamp=known_timestamp,
            refused=refused,
            seen=seen,
        )
        if isinstance(head, Pulled):
            return head
        name = ObjectName(ObjectType.COMMIT, bytes.fromhex(head.commit))
        local = repository.read(name) if repository.has(name) else None
        verified = fetch_commit(self._fetcher, remote, head, known_timestamp=known_timestamp, local=local)
        is_whole = local is not None and not repository.is_partial(head.commit)
        was_here = is_whole and repository.resolve(origin.remote, origin.branch) == head.commit
        if not was_here:
            options = [] if self._uses_deltas else ["--disable-static-deltas"]
            try:
                wanted = f"{origin.branch}@{head.commit}"
                run(["ostree", f"--repo={repository.path}", "pull", *options, origin.remote, wanted])
            except ProgramFailedError as error:
                raise OstreePullError(reason=error.stderr_tail or error.reason) from error
        return Pulled(
            commit=head.commit,
            timestamp=verified.commit.timestamp,
            version=verified.commit.version or "",
            was_here=was_here,
            seen=seen_now(remote, head),
        )

    def preview(self, *, osname: str, commit: str) -> MergePlan:
        """Return what deploying a commit would do to /etc; nothing is written."""
        return preview(self._sysroot, self._repository, osname=osname, commit=commit)

    def deploy(self, *, osname: str, commit: str, origin: Origin) -> Deployment:
        """Let a commit boot next, beside what runs."""
        plan = self.preview(osname=osname, commit=commit)
        unwanted = [found for found in plan.conflicts if found.blocks or self._choices.stops_at_conflicts]
        if unwanted:
            raise ConfigurationConflictError(conflicts=unwanted)
        needs = self._needs_image(osname=osname, commit=commit)
        described = KeyFile()
        described.set("origin", "refspec", origin.refspec)
        with tempfile.NamedTemporaryFile("w", suffix=".origin") as stream:
            stream.write(described.text())
            stream.flush()
            self._admin("deploy", f"--os={osname}", f"--origin-file={stream.name}", commit)
        deployments = self.deployments()
        made = next(one for one in deployments if one.osname == osname and one.commit == commit)
        if needs and not has_image(self._sysroot.directory(made)):
            # It would not start. `ostree` is configured not to make images, whatever the tree says.
            self._admin("undeploy", str(deployments.index(made)))
            raise UnusableTreeError(commit=commit, reason="ostree made no composefs image, and it needs one to start")
        return made

    def _needs_image(self, *, osname: str, commit: str) -> bool:
        """Tell whether a commit needs an image to start; refuse it where `ostree` does not know of them."""
        model = merge_deployment(self.deployments(), osname)
        needs = needs_image(self._repository, self._repository.commit(commit), model=model)
        version = _VERSION.search(run(["ostree", "--version"]).stdout)
        if needs and version is not None and (int(version[1]), int(version[2])) < _FIRST_WITH_IMAGES:
            named = version[0].decode()
            raise UnusableTreeError(
                commit=commit, reason=f"it needs a composefs image to start, which ostree {named} does not make"
            )
        return needs

    def make_default(self, deployment: Deployment) -> None:
        """Let a deployment that is there boot next."""
        if b"set-default" in run(["ostree", "admin", "--help"]).stdout:
            names = [(one.osname, one.name) for one in self.deployments()]
            self._admin("set-default", str(names.index((deployment.osname, deployment.name))))
            return
        # Older versions cannot; what we write, they read.
        with self._sysroot.locked():
            make_default(self._sysroot, self._repository, deployment)

    def clean_up(self) -> None:
        """Remove what no deployment needs."""
        self._admin("cleanup")

    def _admin(self, command: str, *arguments: str) -> None:
        # With a boot partition of its own, only below the root that runs it is found.
        is_apart = self._sysroot.boot.parent != self._sysroot.path
        place = self._sysroot.boot.parent if is_apart else self._sysroot.path
        try:
            run(["ostree", "admin", command, f"--sysroot={place}", *arguments])
        except ProgramFailedError as error:
            raise OstreeDeployError(reason=error.stderr_tail or error.reason) from error
