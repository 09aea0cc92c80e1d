"""What every output of the collector has beside what the machine gives it: which events it gets, and in which form.

    streams → where → sample → transform → (window, dead letters, retries, rate) → format → the far side
"""

from typing import ClassVar

from pydantic import Field, model_validator

from ndagent.core.settings import OutputConfig, RateConfig, SettingError
from ndcollector.formats import FORMATS, Format, FormatConfig
from ndcollector.routing.sample import Sample
from ndcollector.routing.steps_config import MAX_STEPS, StepConfig, WhereText


class RoutedConfig(OutputConfig):
    """The collector's outputs derive from this one."""

    takes_formats: ClassVar[tuple[str, ...]] = ("ecs", *FORMATS)
    """Formats that the output can send; one that needs ECS, or JSON, says so here."""
    takes_syslog_header: ClassVar[bool] = True

    where: WhereText | None = Field(
        default=None,
        description="Only events that match, such as \"severity <= warning and not host glob 'test-*'\"; the others "
        "count as filtered. Null means all.",
    )
    sample: Sample | None = Field(
        default=None, description="Only one of many, drawn by a hash of event.id: `10`, `5%`, or settings. Null: all."
    )
    transform: tuple[StepConfig, ...] = Field(
        default=(), max_length=MAX_STEPS, description="What is changed in events before they are sent, step by step."
    )
    format: Format = Field(default=FormatConfig(), description="What a line looks like; last of all.")
    rate: RateConfig = RateConfig()

    @model_validator(mode="after")
    def _can_send_it(self) -> "RoutedConfig":
        form = self.format
        if form.name not in self.takes_formats:
            known = ", ".join(self.takes_formats)
            raise SettingError(("format",), f"output type {self.type} cannot send {form.name}; it takes: {known}")
        if form.syslog_header != "none" and not self.takes_syslog_header:
            raise SettingError(("format",), f"output type {self.type} sends JSON, which has no syslog_header")
        return self

    @model_validator(mode="after")
    def _is_seen(self) -> "RoutedConfig":
        """A step that the chosen format undoes is a leak with a lock on it."""
        for index, step in enumerate(self.transform if self.format.name == "raw" else ()):
            if step.redact is None:
                remedy = "with format: rfc5424 it does, and redact does with both"
                raise SettingError(
                    ("transform", index), f"does not show in format: raw, which is the message as it came; {remedy}"
                )
        return self

    @property
    def needs_originals(self) -> bool:
        """Whether the decoder has to keep messages as they came, whatever decode.keep_original says."""
        return self.format.name == "raw"
