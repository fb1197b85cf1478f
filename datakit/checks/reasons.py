"""Why a check exists: what goes wrong with a row that fails it, and the smallest such row. `datakit explain` shows both.

An example is what stands in the file, rows one below the other; there is none where the smallest one is long.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, NamedTuple


class Reason(NamedTuple):
    why: str
    example: str = ""


REASONS: Final[Mapping[str, Reason]] = {
    # structure
    "DK101": Reason("A line that does not parse has lost something, mostly its end; nobody can say what.", '{"text": "a story"'),
    "DK102": Reason("Half of a character pair or a byte of another encoding has no meaning, and tokenizers fail on it.", '{"text": "half \\ud83d"}'),
    "DK103": Reason("Without the column there is nothing to ask, or nothing to train on.", '{"chosen": "Apple.", "rejected": "Stone."}'),
    "DK104": Reason("A value of another type would have to be guessed at, and trainers fail on it hours later.", '{"messages": "What is 2 + 2?"}'),
    "DK105": Reason("Two formats in one file are often two data sets that were joined by mistake.", '{"query": "Hi!", "response": "Hello."}'),
    "DK106": Reason("A row without content takes a place in a batch and teaches nothing.", '{"messages": []}'),
    "DK107": Reason("A key that nothing reads may be one that you meant to be read, such as a misspelt `tools`.", '{"messages": [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Hello."}], "mood": "calm"}'),
    "DK108": Reason("One parser takes the first value and another the last, so two people would train on different rows.", '{"text": "one", "text": "two"}'),
    "DK109": Reason("Other JSON readers refuse the whole file, or read the number as something else.", '{"text": "x", "score": NaN}'),
    "DK111": Reason("Processors pair images with placeholders in order; one too few stops the training, or shifts all others.", '{"messages": [{"role": "user", "content": "<image><image> The same?"}, {"role": "assistant", "content": "No."}], "images": ["a.png"]}'),
    "DK112": Reason("A value without a name can be anything.", "42"),
    "DK113": Reason("Most readers turn such a number into a float, and its last digits change.", '{"text": "x", "id": 18446744073709551616}'),
    "DK114": Reason("Deep nesting ends parsers by their recursion limit, and is hardly ever meant."),
    "DK115": Reason("Such a line is mostly a file without line feeds, and reading it whole would take all memory."),
    "DK116": Reason("Line feeds were lost, so a reader by lines would see one row, or none.", '{"text": "one"} {"text": "two"}'),
    "DK117": Reason("The trainer would see a question about something that it is never shown.", '{"messages": [{"role": "user", "content": "Describe."}, {"role": "assistant", "content": "A cat."}], "video": "a.mp4"}'),
    "DK118": Reason("An empty input is mostly a download or an export that failed."),
    "DK119": Reason("It is no part of the text, and other readers take it for the beginning of the first key.", '\ufeff{"text": "a story"}'),
    "DK120": Reason("What the other form cannot hold would be lost without a word.", '{"prompt": [{"role": "user", "content": "Name a fruit."}], "chosen": [{"role": "assistant", "content": "Apple."}], "rejected": [{"role": "assistant", "content": [{"type": "text", "text": "Stone."}]}]}'),
    "DK121": Reason("One row that takes all memory would end the whole run."),
    "DK122": Reason("Rows that were held out for a measurement would be trained on, and the measurement be too good."),
    "DK123": Reason("Its rows are trained twice as often as meant; or, in two splits, measured on what was learnt by heart."),
    "DK124": Reason("The model is asked about a picture that it never gets, and learns to make one up.", '{"messages": [{"role": "user", "content": "<image> What is this?"}, {"role": "assistant", "content": "A cat."}]}'),
    "DK125": Reason("What reads dk_meta or a side column gets a text where the file had a value of another type."),
    "DK126": Reason("A score that is not a number orders nothing, and whoever counts on numbers finds a text."),
    "DK127": Reason("Rows in such a file are missing without anyone having said so."),
    # turns
    "DK128": Reason("The model would be trained to answer from what it is never shown.", '{"question": "When?", "context": "The mill was built in 1882.", "answer": "In 1882."}'),
    "DK201": Reason("Who speaks decides what is trained; guessed wrongly, the model learns to ask instead of to answer.", '{"messages": [{"role": "user", "content": "Hi!"}, {"role": "asistant", "content": "Hello."}]}'),
    "DK202": Reason("Only assistant turns are trained, so whatever follows the last one has no effect.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}, {"role": "user", "content": "Thanks!"}]}'),
    "DK203": Reason("With no assistant turn every token is masked, and the loss of the row is not a number or zero.", '{"messages": [{"role": "user", "content": "2 + 2?"}]}'),
    "DK204": Reason("Many chat templates print only a first system message; a later one is refused, or left out.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "system", "content": "Be brief."}, {"role": "assistant", "content": "4."}]}'),
    "DK205": Reason("Chat templates such as Llama 2's and Gemma's raise an error unless turns alternate.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "user", "content": "Please."}, {"role": "assistant", "content": "4."}]}'),
    "DK206": Reason("Some chat templates raise an error, and in use a model never speaks first.", '{"messages": [{"role": "assistant", "content": "Hello."}, {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]}'),
    "DK207": Reason("An empty answer teaches the model to say nothing; an empty question, to answer out of nothing.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": ""}]}'),
    "DK208": Reason("It is longer than what models read at once, and mostly several conversations in one."),
    "DK209": Reason("A weight multiplies the loss; below 0 it teaches the opposite, and above 1 it drowns other rows.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4.", "weight": -1}]}'),
    "DK210": Reason("Templates cut thoughts out by their tags; with one missing, thoughts are shown as answers or answers vanish.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "<think>2 and 2. 4."}]}'),
    "DK211": Reason("Only one of two instructions can be meant, and the answers fit only that.", '{"system": "Be verbose.", "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]}'),
    "DK212": Reason("Most templates print it as an empty block, which the model does not get when it is used.", '{"messages": [{"role": "system", "content": ""}, {"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}]}'),
    "DK213": Reason("The model would learn to write what users write.", '{"messages": [{"role": "user", "content": "2 + 2?", "weight": 1}, {"role": "assistant", "content": "4."}]}'),
    "DK214": Reason("Every token of the row is masked, so it costs time and teaches nothing.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4.", "weight": 0}]}'),
    "DK215": Reason("A thought that holds a </think> of its own would be cut in the middle when it is read back.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4.", "reasoning_content": "They write </think> here."}]}'),
    # tools
    "DK301": Reason("Templates print the definition into the prompt, so the model would learn a tool that cannot be called.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}], "tools": "[not JSON"}'),
    "DK302": Reason("The model would learn to write calls that no program can read.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": null, "tool_calls": ["add"]}]}'),
    "DK303": Reason("The model would learn to call tools that it was not given.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {}}}]}], "tools": [{"name": "time", "parameters": {}}]}'),
    "DK304": Reason("The model would learn calls that the tool refuses.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {"b": 2}}}]}], "tools": [{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number"}}, "required": ["a"]}}]}'),
    "DK305": Reason("Templates print the nulls, so the model sees other definitions in training than in use.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."}], "tools": [{"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "number", "enum": null}}}}]}'),
    "DK306": Reason("Templates such as Mistral's raise an error without one, and results are paired with calls by it.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": null, "tool_calls": [{"type": "function", "function": {"name": "add", "arguments": {}}}]}]}'),
    "DK307": Reason("A result that nobody asked for teaches the model to expect answers out of nothing.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "tool", "tool_call_id": "c1", "content": "4"}, {"role": "assistant", "content": "4."}]}'),
    "DK308": Reason("An answer without the result of the call teaches the model to make results up.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {}}}]}, {"role": "assistant", "content": "4."}]}'),
    "DK309": Reason("A model that only ever sees tools left alone learns to leave them alone."),
    "DK310": Reason("In use the model sees definitions before it calls; without them it learns to call by heart.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {}}}]}]}'),
    "DK311": Reason("Arrow fills in null for every key that some other row has, so the original cannot be told from the padding."),
    "DK312": Reason("A result names its call by the id, and two calls of one id share their results.", '{"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "add", "arguments": {}}}, {"id": "c1", "type": "function", "function": {"name": "add", "arguments": {}}}]}]}'),
    "DK313": Reason("Most such calls have no arguments; but an export that lost them looks the same.", '{"messages": [{"role": "user", "content": "The time?"}, {"role": "assistant", "content": null, "tool_calls": [{"id": "c1", "type": "function", "function": {"name": "now", "arguments": ""}}]}]}'),
    # preferences
    "DK401": Reason("The gradients of the two sides cancel out; the row costs time and moves nothing.", '{"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": "Apple."}'),
    "DK402": Reason("An answer to another question is compared, so the pair says nothing about this one.", '{"prompt": [{"role": "user", "content": "Name a fruit."}], "chosen": [{"role": "assistant", "content": "Apple."}], "rejected": [{"role": "user", "content": "Name a stone."}, {"role": "assistant", "content": "Flint."}]}'),
    "DK403": Reason("Trainers cut off what both sides share as the prompt; where they share nothing there is no question.", '{"chosen": [{"role": "assistant", "content": "Apple."}], "rejected": [{"role": "assistant", "content": "Stone."}]}'),
    "DK404": Reason("The two rows pull against each other.", '{"prompt": "Name a fruit.", "chosen": "Plum.", "rejected": "Pear."}\n{"prompt": "Name a fruit.", "chosen": "Pear.", "rejected": "Plum."}'),
    "DK405": Reason("Scores that contradict the choice mostly mean swapped columns, and the model would learn the opposite.", '{"prompt": "Name a fruit.", "chosen": "Stone.", "rejected": "Apple.", "chosen_score": 1, "rejected_score": 5}'),
    "DK406": Reason("The model would learn to be long, or short, instead of to be good."),
    "DK407": Reason("A cut answer loses for its missing end, so the model learns about lengths and not about contents.", '{"prompt": "Name a fruit.", "chosen": "An apple or a pear.", "rejected": "An apple"}'),
    "DK408": Reason("The model would learn the mark, which takes fewer steps than to learn what is good."),
    "DK410": Reason("Preference methods need a winner; to pick one would be a made-up label.", '{"prompt": "Name a fruit.", "response_1": "Apple.", "response_2": "Pear.", "preference_strength": 0}'),
    "DK411": Reason("An empty side teaches only that any text is better, or worse, than none.", '{"prompt": "Name a fruit.", "chosen": "Apple.", "rejected": ""}'),
    # labels
    "DK501": Reason("A label that is guessed the wrong way round teaches the opposite.", '{"prompt": "2 + 2?", "completion": "4", "label": 2}'),
    "DK502": Reason("KTO weighs one class against the other; with one alone it pushes everything up, or down."),
    "DK503": Reason("The larger class outweighs the smaller one, unless their weights make up for it."),
    "DK504": Reason("The two rows pull against each other.", '{"prompt": "2 + 2?", "completion": "4", "label": true}\n{"prompt": "2 + 2?", "completion": "4", "label": false}'),
    "DK505": Reason("KTO measures a row against others of its batch; a batch of one class has nothing to measure against."),
    # rendering and tokens
    "DK701": Reason("A trainer would stop at this row, or a template that answers otherwise would train on nonsense."),
    "DK702": Reason("A trainer cuts it without a word, and what is cut is the end: the answer."),
    "DK703": Reason("The model would be trained on a conversation in which things happen that nobody said."),
    "DK704": Reason("The row takes a place in a batch and moves nothing; trainers drop it without a word."),
    "DK705": Reason("Models see one such token at the start of a text; a second one shifts everything that follows."),
    "DK706": Reason("A model that never sees the end of a turn trained goes on for ever."),
    "DK707": Reason("A text that holds the token for the end of a turn ends the turn, and what follows can play any role."),
    "DK708": Reason("The model is asked one way and was taught another, and the difference is where the answer begins."),
    "DK710": Reason("A mask that is one token off trains the user's words, or never trains the end."),
    "DK713": Reason("It belongs to both sides; it is trained, as in transformers, so that ids and labels are those of others."),
    "DK714": Reason("What was cut was not learnt, and an answer that was cut does not say where to stop."),
    # content
    "DK711": Reason("Ids and labels are paired by place; with unequal lengths other tokens are trained than were meant.", '{"input_ids": [1, 2, 3], "labels": [-100, 2]}'),
    "DK801": Reason("Copies are trained as often as they occur, and are learnt by heart.", '{"text": "a story"}\n{"text": "a story"}'),
    "DK901": Reason("The model would learn to write the damaged signs.", '{"messages": [{"role": "user", "content": "Un cafÃ©?"}, {"role": "assistant", "content": "Oui."}]}'),
    "DK909": Reason("They show nothing, take rare tokens, and are often what an escape such as \\b or \\f became.", '{"messages": [{"role": "user", "content": "a\\u0007b"}, {"role": "assistant", "content": "Yes."}]}'),
}  # fmt: skip
