"""The exceptions of the operator's side, one tree.

BlackstartError           what failed and where, why, and what to do next
├── InventoryError        a datum of the inventory is wrong (carries its key's path and the host)
├── HostError             the operator's host or a machine is not fit
├── MachineError          a local machine could not be made, booted or removed
├── StackError            a stack image could not be built or loaded
├── GraphError           the components' declared needs contradict each other, or the file of one is wrong
├── DeployError           a pyinfra deploy did not succeed on every host
├── PlatformError         the platform's API refused or did not answer
├── ProofError            something that must hold does not hold
└── LockedError           another run holds the platform's lock

StopRequested is Ctrl-C or SIGTERM. It is no BlackstartError: what looks whether something holds must not swallow it.
"""


def in_words(what: str, why: str, fix: str) -> str:
    """Return what an operator reads."""
    return "\n".join([what, *([f"Why: {why}"] if why else []), *([f"To do: {fix}"] if fix else [])])


class BlackstartError(Exception):
    """Something failed. `what` names what and where, `why` the cause, `fix` what to do next."""

    def __init__(self, what: str, *, why: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix

    def __str__(self) -> str:
        return in_words(self.what, self.why, self.fix)


class InventoryError(BlackstartError):
    """A datum of the inventory is wrong."""


class HostError(BlackstartError):
    """The operator's host or a machine is not fit for its task."""


class MachineError(BlackstartError):
    """A local machine could not be made, booted or removed."""


class StackError(BlackstartError):
    """A stack image could not be built or loaded."""


class GraphError(BlackstartError):
    """The components' declared needs contradict each other, or the file of one is wrong."""


class DeployError(BlackstartError):
    """A pyinfra deploy did not succeed on every host."""


class PlatformError(BlackstartError):
    """The platform's API refused a request or did not answer."""


class ProofError(BlackstartError):
    """Something that must hold does not hold."""


class LockedError(BlackstartError):
    """Another run holds the platform's lock."""


class StopRequested(BaseException):
    """The operator asked to stop (Ctrl-C or SIGTERM)."""
