"""Every error Headway raises on purpose, in one tree.

    HeadwayError               .hint: what to do; .retryable: may help to try again
      BundleError              a bundle or release cannot be used
        BadFormat              its bytes are not what the format page says
        BadSignature           a digest or signature does not match
        Unsigned               a release that no signed metadata names
        Expired                signed metadata that is no longer fresh
        OlderVersion           an older version than one already seen
        Incompatible           well-formed, but not for this device or head
        Unreadable             the medium that it is on cannot be read
      HeadError                the head cannot do what was asked
        FeatureSizeError       codes of another size, or of another feature space
        UnknownClassError      a class the head or log has never heard of
      LabelError               a label event that cannot be accepted
        SummedSample           its code is in the release's sums only
        LabelledMeanwhile      somebody has said something else of the sample since it was looked at
      WireError                a message broke the protocol
        LocalWireError         ours
        RemoteWireError        the peer's
      BrokerError              the MQTT broker cannot be reached or refuses us
      DeviceError              something on the device
        CameraLost             no more frames from this source
        InferenceFailed        the runtime failed, or is out of tolerance
        NoMaps                 the release or its runtime gives no maps for a heatmap
        TriggerRefused         a part came before there was room for it
        OutputFailed           a verdict could not be delivered
          OutputRefused        and never will be
        StoreFull              no space to keep a label safely
        StoreCorrupt           the store does not hold what it should
      EngineError              a TensorRT engine cannot be built or used
        TensorRtMissing        TensorRT, CUDA or a GPU is not on this machine
      ExportError              the exporter cannot make a bundle
        BadImages              no usable labelled images
        UnknownBackbone        no such architecture or weights
        CalibrationFailed      quantization found no usable range
        ParityFailed           two forms of the backbone disagree
      FleetError               the fleet service cannot do what was asked
        UnknownDevice          no such device
        RolloutHalted          a rollout stopped itself
        DatabaseAway           the fleet's database cannot be used now
        KeyRefused             a signing key or certificate cannot be used
        LicenceRefused         weights under a licence that may not be published
      AccessError              somebody may not do this on a device's page
        LoginFailed            name and secret do not go together
        TooManyTries           too many wrong tries, or too many requests
        AccountRefused         an account or token cannot be as asked
          NameTaken            one of that name exists
          NoAccount            there is none of that name
          LastAdmin            somebody must stay who may make accounts
      ConfigError              a settings file is wrong
      MissingExtra             an optional part is not installed

Each message is one line and says what is wrong with which thing; `hint` says what to do about it.
Wrong use by a programmer stays ValueError or TypeError.
"""

from __future__ import annotations


class HeadwayError(Exception):
    """Something a user, operator or peer can do something about.

    Args:
        message: One line: what is wrong, with which thing.
        hint: One line: what to do about it.
    """

    retryable: bool = False

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.hint = hint


class BundleError(HeadwayError):
    """A bundle or release cannot be used."""


class BadFormat(BundleError):
    """Bytes that are not what docs/bundle.md says."""


class BadSignature(BundleError):
    """A digest or signature that does not match."""


class Unsigned(BundleError):
    """A release that is not a signed target of this device's channel."""


class Expired(BundleError):
    """Signed metadata that is no longer fresh, by a clock that may be believed."""

    retryable = True


class OlderVersion(BundleError):
    """An older version than one already seen."""


class Incompatible(BundleError):
    """Well-formed, but not for this device, head or version of Headway."""


class Unreadable(BundleError):
    """The medium that it is on cannot be read: taken out, or damaged."""

    retryable = True


class HeadError(HeadwayError):
    """The head cannot do what was asked."""


class FeatureSizeError(HeadError):
    """Codes of another size, or of another feature space."""


class UnknownClassError(HeadError):
    """A class the head or the log has never heard of."""


class LabelError(HeadwayError):
    """A label event that cannot be accepted."""


class SummedSample(LabelError):
    """A sample of the release whose code is in its sums only, so that it cannot be changed or taken out."""


class LabelledMeanwhile(LabelError):
    """Somebody has labelled the sample, or withdrawn its label, since whoever labels it now looked at it."""


class WireError(HeadwayError):
    """A message broke the protocol of docs/protocol.md."""


class LocalWireError(WireError):
    """We were about to send something the protocol forbids."""


class RemoteWireError(WireError):
    """The peer sent something the protocol forbids."""


class BrokerError(HeadwayError):
    """The MQTT broker cannot be reached or refuses us."""

    retryable = True


class DeviceError(HeadwayError):
    """Something on the device."""


class CameraLost(DeviceError):
    """No more frames from this source."""

    retryable = True


class InferenceFailed(DeviceError):
    """The runtime failed, or its output is out of tolerance."""


class NoMaps(DeviceError):
    """The release, or the runtime that serves it, gives features only: there is no heatmap."""


class NoRelease(DeviceError):
    """No release serves on this device yet."""

    retryable = True


class TriggerRefused(DeviceError):
    """A part came while as many as may wait were waiting; it is rejected unseen."""

    retryable = True


class OutputFailed(DeviceError):
    """A verdict could not be delivered."""

    retryable = True


class OutputRefused(OutputFailed):
    """Whoever verdicts are sent to will not have this one, however often it is sent."""

    retryable = False


class StoreFull(DeviceError):
    """No space to keep a label safely."""

    retryable = True


class StoreCorrupt(DeviceError):
    """The store does not hold what it should."""


class EngineError(HeadwayError):
    """A TensorRT engine cannot be built or used."""


class TensorRtMissing(EngineError):
    """TensorRT, CUDA or a GPU is not on this machine."""


class ExportError(HeadwayError):
    """The exporter cannot make a bundle."""


class BadImages(ExportError):
    """A folder or image that cannot be learned from."""


class UnknownBackbone(ExportError):
    """No such architecture, or weights that do not fit it."""


class CalibrationFailed(ExportError):
    """Quantization found no usable range."""


class ParityFailed(ExportError):
    """Two forms of the same backbone disagree beyond tolerance."""


class FleetError(HeadwayError):
    """The fleet service cannot do what was asked."""


class UnknownDevice(FleetError):
    """No such device."""


class RolloutHalted(FleetError):
    """A rollout stopped itself."""


class DatabaseAway(FleetError):
    """The fleet's database cannot be used now: its server is away, its disk full, or another program holds it."""

    retryable = True


class KeyRefused(FleetError):
    """A signing key or certificate that is missing, locked, or not the right one."""


class LicenceRefused(FleetError):
    """Weights under a licence that is unknown, or not on the list of those that may be published."""


class AccessError(HeadwayError):
    """Somebody may not do this on a device's page."""


class LoginFailed(AccessError):
    """Name and secret do not go together."""


class TooManyTries(AccessError):
    """Too many wrong tries, or too many requests."""

    retryable = True


class AccountRefused(AccessError):
    """An account or token cannot be as asked: its name or its secret will not do."""


class NameTaken(AccountRefused):
    """An account or token of that name exists."""


class NoAccount(AccountRefused):
    """There is no account or token of that name."""


class LastAdmin(AccountRefused):
    """Without an admin nobody could make accounts; without any account everybody could do everything."""


class ConfigError(HeadwayError):
    """A settings file is wrong."""


class MissingExtra(HeadwayError):
    """An optional part of Headway is not installed."""
