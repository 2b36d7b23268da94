"""Who may publish: signed releases by TUF, keys in files, signatures under the stream of labels (docs/trust.md).

`metadata` says how releases are written into TUF metadata and that into one message, `keys` keeps private keys in
files, `repository` is the signing side, `verify` the device's. What a device does with a refusal is its business.
"""
