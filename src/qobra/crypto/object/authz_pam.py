"""``authz-pam``: the account rules of a PAM service decide (pam_acct_mgmt(3))."""

from __future__ import annotations

import ctypes
import ctypes.util

from qobra.crypto.authz import Authz
from qobra.errors import QobraError
from qobra.object.property import String
from qobra.object.types import registry

_PAM_SUCCESS = 0
_PAM_SILENT = 0x8000
_PAM_CONV_ERR = 19

_ConversationCall = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)


class _Conversation(ctypes.Structure):
    _fields_ = [("call", _ConversationCall), ("data", ctypes.c_void_p)]


# There is nobody to ask: account rules that need a dialogue fail.
_refuse_to_talk = _ConversationCall(lambda _count, _messages, _responses, _data: _PAM_CONV_ERR)


@registry.register("authz-pam")
class AuthzPam(Authz):
    """Asks PAM whether the account ``identity`` is good for ``service``."""

    type_name = "authz-pam"
    user_creatable = True

    service = String()

    def complete(self) -> None:
        if self.service is None:
            raise QobraError("The 'service' property must be set")
        library = ctypes.util.find_library("pam")
        if library is None:
            raise QobraError("The PAM library is not installed")
        self._pam = ctypes.CDLL(library)

    def is_allowed(self, identity: str) -> bool:
        handle = ctypes.c_void_p()
        conversation = _Conversation(_refuse_to_talk, None)
        status = self._pam.pam_start(
            self.service.encode(), identity.encode(), ctypes.byref(conversation), ctypes.byref(handle)
        )
        if status != _PAM_SUCCESS:
            raise QobraError(f"Unable to initialize PAM for service '{self.service}'")
        status = self._pam.pam_acct_mgmt(handle, _PAM_SILENT)
        self._pam.pam_end(handle, status)
        return bool(status == _PAM_SUCCESS)
