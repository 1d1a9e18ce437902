"""What a SystemVMTemplate says of its images: zone by zone, in one condition, and what promotion would do."""

from collections.abc import Sequence
from dataclasses import dataclass

from sysvm.api.base import Condition
from sysvm.api.images import ImageStatus
from sysvm.api.reasons import ConditionType, Reason
from sysvm.api.template import SystemVMTemplateStatus
from sysvm.domain import conditions
from sysvm.domain.conditions import Wanted
from sysvm.domain.templates import Promotion

ROWS_LIMIT, UNUSED_LIMIT, NAMED = 256, 64, 5


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesSeen:
    """What was found of the images of a release in all clouds that use it."""

    rows: tuple[ImageStatus, ...] = ()
    undeclared: tuple[str, ...] = ()
    """Zones with hosts of a kind that the release has no image for, as `endpoint: zone hypervisor arch`."""
    unused: tuple[str, ...] = ()
    """`endpoint/name` of system VM templates that nothing is started from."""
    promotion: Promotion | None = None
    problems: tuple[str, ...] = ()
    """Why a cloud could not be asked, or an image not be registered or promoted."""


class NotAskedYet:
    """The clouds were not asked since the operator began: what is stored stands."""


Images = ImagesSeen | NotAskedYet | None
"""None: the release has no images, or no policy uses it in a cloud with a management server."""


def image_conditions(stored: Sequence[Condition], images: Images) -> list[Wanted]:
    """The condition ImagesReady, where there is anything to say."""
    if images is None:
        return []
    if isinstance(images, ImagesSeen):
        return [_said(images)]
    last = conditions.find(stored, ConditionType.IMAGES_READY)
    if last is None:
        told = "the clouds are being asked for their templates"
        return [conditions.unknown(ConditionType.IMAGES_READY, Reason.IMAGES_NOT_SEEN, told)]
    return [Wanted(ConditionType.IMAGES_READY, last.status, Reason(last.reason), last.message)]


def _said(seen: ImagesSeen) -> Wanted:
    late = [row.message for row in seen.rows if not row.ready]
    if seen.problems:
        return conditions.unknown(ConditionType.IMAGES_READY, Reason.IMAGES_NOT_SEEN, _few(seen.problems))
    if late:
        return conditions.false(ConditionType.IMAGES_READY, Reason.IMAGE_NOT_READY, _few(late))
    if seen.undeclared:
        told = f"no image is declared for {_few(seen.undeclared)}"
        return conditions.false(ConditionType.IMAGES_READY, Reason.IMAGE_NOT_DECLARED, told)
    idle = [f"{row.endpoint}/{row.zone}" for row in seen.rows if not row.used_by]
    zones = len({(row.endpoint, row.zone) for row in seen.rows})
    told = f"ready in {zones} zone{'s' if zones != 1 else ''}"
    if idle:
        told = f"{told}; nothing would be started from them yet in {_few(idle)}"
    return conditions.true(ConditionType.IMAGES_READY, Reason.IMAGES_READY, told)


def with_images(status: SystemVMTemplateStatus, images: Images) -> SystemVMTemplateStatus:
    """The status with what was seen."""
    if isinstance(images, NotAskedYet):
        return status
    seen = images or ImagesSeen()
    return status.model_copy(
        update={
            "images": seen.rows[:ROWS_LIMIT] or None,
            "unused": seen.unused[:UNUSED_LIMIT] or None,
            "promotion": seen.promotion.status() if seen.promotion else None,
        }
    )


def _few(sentences: tuple[str, ...] | list[str]) -> str:
    told = list(dict.fromkeys(sentences))
    return "; ".join(told[:NAMED]) + (f"; and {len(told) - NAMED} more" if len(told) > NAMED else "")
