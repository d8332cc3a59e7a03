"""What a student reads of one case.

A student sees one tile alone: a patient with several tiles gives several prompts, and whoever asks puts
their answers together.
"""

from dataclasses import dataclass

from client.patients.photos import SlideRef


@dataclass(frozen=True, kw_only=True)
class StudentPrompt:
    """A prompt of one case.

    Attributes:
        text: As ``client.preferences.answers.write_prompt`` wrote it.
        image: The tile that an image student reads before the text; none for a text student.
    """

    text: str
    image: SlideRef | None = None
