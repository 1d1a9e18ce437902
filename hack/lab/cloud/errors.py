"""What the stand-in refuses, in the words and codes that were recorded."""

from __future__ import annotations

UNVERIFIED = "unable to verify user credentials and/or request signature"
_GENERIC, _INVALID_PARAMETER = 9999, 4350


class ApiError(Exception):
    """An answer with an error code. `command` False: wrapped in `errorresponse` instead of the command's name."""

    def __init__(self, code: int, text: str, *, cs_code: int | None = _GENERIC, in_command: bool = True) -> None:
        super().__init__(text)
        self.code = code
        self.text = text
        self.cs_code = cs_code
        self.in_command = in_command

    def body(self) -> dict[str, object]:
        """The object under the wrapper."""
        found: dict[str, object] = {"uuidList": [], "errorcode": self.code}
        if self.cs_code is not None:
            found["cserrorcode"] = self.cs_code
        return found | {"errortext": self.text}


def unverified(*, in_command: bool = True) -> ApiError:
    return ApiError(401, UNVERIFIED, cs_code=None, in_command=in_command)


def not_available(command: str, user_id: str) -> ApiError:
    text = f"The API [{command}] does not exist or is not available for the account for user id [{user_id}]."
    return ApiError(432, text, in_command=False)


def missing_parameter(command: str, name: str) -> ApiError:
    return ApiError(431, f"Unable to execute API command {command.lower()} due to missing parameter {name}")


def unknown_entity(command: str, name: str, value: str) -> ApiError:
    return ApiError(
        431,
        f"Unable to execute API command {command.lower()} due to invalid value. Invalid parameter {name} value={value} "
        "due to incorrect long value format, or entity does not exist or due to incorrect parameter annotation for the "
        "field in api cmd class.",
    )


def invalid(text: str) -> ApiError:
    """A parameter that the command itself refuses."""
    return ApiError(431, text, cs_code=_INVALID_PARAMETER)


def throttled(milliseconds: int) -> ApiError:
    return ApiError(
        429, f"The given user has reached his/her account api limit, please retry after [{milliseconds}] ms."
    )


def internal(text: str) -> ApiError:
    return ApiError(530, text)
