"""Brings the static tree of one pool up to date."""

import time
from pathlib import Path

from overhaul.dialects.atomupd.catalogue import Catalogue, make_catalogue
from overhaul.dialects.atomupd.pool import PoolScanner
from overhaul.dialects.atomupd.server_configuration import ServerConfiguration
from overhaul.dialects.atomupd.static_files import StaticChange, write_static_tree
from overhaul.dialects.atomupd.static_state import forget, note
from overhaul.dialects.atomupd.static_tree import Estimate, StaticTree, no_estimate, static_tree
from overhaul.errors import OverhaulError


class StaticGenerator:
    """Writes the tree of one pool, as often as it is asked."""

    def __init__(self, configuration: ServerConfiguration, root: Path) -> None:
        self.configuration = configuration
        self.root = root
        self._scanner = PoolScanner(configuration.pool, branches=True)
        wanted = configuration.estimate_sizes
        if wanted is None:
            wanted = configuration.rauc_config.exists()
        self._estimate: Estimate = no_estimate
        if wanted:
            from overhaul.dialects.atomupd.sizes import SizeEstimator

            self._estimate = SizeEstimator(configuration.pool, rauc_config=configuration.rauc_config)

    def generate(self) -> tuple[Catalogue, StaticChange]:
        """Bring the tree up to date.

        Raises:
            OverhaulError: It cannot be; the old tree is as it was.
        """
        configuration = self.configuration
        if not configuration.support.has_branches:
            raise NoBranchesError(configuration.path)
        catalogue = make_catalogue(self._scanner.scan(), configuration.support)
        now = int(time.time())
        closed = [one for one in configuration.requirements if not one.is_open_to_everybody(now)]
        hidden = frozenset(
            entry for entry in catalogue.recorded if any(requirement.holds_for(entry.image) for requirement in closed)
        )
        tree = static_tree(
            catalogue,
            offered=catalogue.without(hidden) if hidden else None,
            remote_info=configuration.remote_info,
        )
        # A pool with problems may be half mounted: nothing is removed by what it lacks.
        remove = configuration.remove_stale and bool(tree.answers) and not catalogue.problems
        change = write_static_tree(self.root, tree, estimate=self._estimate, remove_stale=remove)
        self._note(catalogue, tree)
        return catalogue, change

    def _note(self, catalogue: Catalogue, tree: StaticTree) -> None:
        """Note what the tree was made of, where its files' times can tell that nothing has changed since."""
        configuration = self.configuration
        # What is said anew by each run, follows the clock, or looks for files that are in no list needs a whole run.
        if (
            catalogue.problems
            or catalogue.warnings
            or configuration.requirements
            or configuration.remove_stale
            or not self._scanner.tells_by_times
        ):
            forget(self.root)
            return
        note(
            self.root,
            configuration.path,
            pool=configuration.pool,
            inputs=self._scanner.stamps,
            present=[*tree.answers, *tree.others],
            absent=tree.forbidden,
        )


class NoBranchesError(OverhaulError):
    """A configuration of the seed rules, which have no static form."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(f"{path} has no [Images] Branches; the static tree needs them.")
