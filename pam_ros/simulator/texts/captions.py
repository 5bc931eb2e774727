"""Writes the texts of the five tasks in English and Chinese: label, explain, brief, detail, clip.

Every text names its subject first, so that the first category in it is the region's.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from pam_ros.records import Language, Task
from pam_ros.simulator.ontology import Entry, ontology
from pam_ros.simulator.texts.facts import Facts, Mention

Rng = np.random.Generator
EN, ZH = Language.EN, Language.ZH
OPINION_FIRST = ("foam", "fruit")  # "a soft yellow sponge", but "a yellow plastic mug"
RELATIONS = {
    "left": ("to the left of", "左边"),
    "right": ("to the right of", "右边"),
    "front": ("in front of", "前面"),
    "behind": ("behind", "后面"),
}
SIZES = {"small": ("smaller", "small", "小"), "large": ("larger", "large", "大")}


def pick(rng: Rng, choices: Sequence[str]) -> str:
    """One of the choices."""
    return choices[int(rng.integers(len(choices)))]


def _listed(language: Language, items: Sequence[str]) -> str:
    """ "a mug, a bowl and a fork"."""
    comma, last = (", ", " and ") if language is EN else ("、", "和")
    return items[0] if len(items) == 1 else comma.join(items[:-1]) + last + items[-1]


def _whole(facts: Facts) -> Mention:
    """The object to which a part belongs."""
    assert facts.whole is not None
    return facts.whole


def describe(facts: Facts, task: Task, language: Language, rng: Rng) -> str:
    """The text of an image task. Raises ValueError for Task.CLIP; see `clip_caption`."""
    entry = ontology().entries[facts.category]
    if task is Task.LABEL:
        return entry.label(language)
    if task is Task.EXPLAIN:
        worded = explain_zh if language is ZH else explain_en
    elif task is Task.BRIEF:
        worded = brief_zh if language is ZH else brief_en
    elif task is Task.DETAIL:
        worded = detail_zh if language is ZH else detail_en
    else:
        raise ValueError("a clip caption needs events; use clip_caption")
    return worded(facts, entry, rng)


# -- English ---------------------------------------------------------------------------------


def article(phrase: str) -> str:
    """ "a" or "an" before a phrase."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def capital(sentence: str) -> str:
    """The sentence with a capital first letter."""
    return sentence[0].upper() + sentence[1:]


@lru_cache(maxsize=1024)
def adjectives_en(colour: str, material: str) -> str:
    """Colour and material in their usual order; "" without either."""
    known = ontology()
    words = [known.word("colours", colour, EN)] if colour else []
    if material:
        word = known.word("materials", material, EN)
        words = [word, *words] if material in OPINION_FIRST else [*words, word]
    return " ".join(words)


def a_noun(entry: Entry, adjectives: str = "", noun: str = "") -> str:
    """ "a red mug", "a pair of red scissors", "green leaves"."""
    phrase = f"{adjectives} {noun or entry.noun}".strip()
    if not entry.plural:
        return article(phrase)
    return phrase if entry.kind == "part" else f"a pair of {phrase}"


def mention_en(what: Mention) -> str:
    """ "a blue mug"."""
    return a_noun(ontology().entries[what.category], adjectives_en(what.colour, ""))


def subject_en(facts: Facts, entry: Entry, noun: str = "") -> str:
    """ "a red enamel kettle", "a hammer with a yellow handle", "a wooden table"."""
    if facts.kind == "region":
        surface = ontology().word("surfaces", facts.surface, EN) if facts.surface else facts.colour
        return a_noun(entry, surface, noun)
    text = a_noun(entry, adjectives_en(facts.colour, facts.material), noun)
    return f"{text} with {article(facts.handle_colour)} handle" if facts.handle_colour else text


def place_en(facts: Facts, surface: bool = True) -> str:
    """ "on the wooden table"; "" for regions and parts."""
    place, family = facts.place
    if not place:
        return ""
    word = ontology().word("surfaces", family, EN) + " " if surface and family else ""
    return f"on the {word}{ontology().entries[place].label(EN)}"


def beside_en(facts: Facts) -> str:
    """ "to the left of a mug"; "" without a neighbour."""
    return f"{RELATIONS[facts.relation][0]} {mention_en(facts.neighbour)}" if facts.neighbour else ""


def _here_en(facts: Facts, entry: Entry, infinitive: str, rng: Rng) -> str:
    it, stands = (
        ("they", "lie" if facts.lies else "stand")
        if entry.plural
        else ("it", "lies" if facts.lies else "stands")
    )
    if facts.kind == "part":
        return f"Here {it} {'belong' if entry.plural else 'belongs'} to {mention_en(_whole(facts))}."
    if facts.kind == "region":
        if facts.carries:
            return f"Here {it} carries {_listed(EN, [mention_en(one) for one in facts.carries])}."
        return pick(rng, (f"Here {it} forms the background.", f"Here {it} is part of the background."))
    for pair in ontology().pairs:
        near = facts.neighbour.category if facts.neighbour else ""
        if pair.first == facts.category and pair.second in (near, facts.place[0]):
            where = place_en(facts, False) if pair.second == facts.place[0] else beside_en(facts)
            return f"Here {it} {stands} {where}, {pair.text[EN]}."
    where = " ".join(
        part for part in (place_en(facts, False), beside_en(facts) if rng.random() < 0.4 else "") if part
    )
    purpose = (
        f"kept there to {infinitive} later"
        if facts.place[0] == "shelf"
        else pick(rng, (f"ready to {infinitive}", f"at hand to {infinitive}"))
    )
    return f"Here {it} {stands} {where}, {purpose}."


def explain_en(facts: Facts, entry: Entry, rng: Rng) -> str:
    """Label, definition and function, then its function in this scene."""
    forms = ontology().functions[entry.function].english
    infinitive, gerund = forms[int(rng.integers(len(forms)))]
    definition = entry.definition[EN]
    name = capital(entry.noun) if entry.plural else capital(article(entry.noun))
    verb = "are" if entry.plural else "is"
    use = pick(rng, (f"used to {infinitive}", f"used for {gerund}", f"made to {infinitive}"))
    return f"{name} {verb} {definition}, {use}. {_here_en(facts, entry, infinitive, rng)}"


def brief_en(facts: Facts, entry: Entry, rng: Rng) -> str:
    """One sentence."""
    noun = pick(rng, entry.names[EN]) if rng.random() < 0.12 and entry.noun == entry.label(EN) else ""
    subject = subject_en(facts, entry, noun)
    if facts.kind == "part":
        phrase = f"{adjectives_en(facts.colour, '')} {noun or entry.noun}".strip()
        return f"The {phrase} of {mention_en(_whole(facts))}."
    if facts.kind == "region":
        tail = (
            f" with {_listed(EN, [mention_en(one) for one in facts.carries])} on it"
            if facts.carries
            else " in the background"
        )
        return capital(f"{subject}{tail}.")
    where = place_en(facts, rng.random() < 0.5)
    if facts.neighbour and rng.random() < 0.5:
        return capital(f"{subject} {where}, {beside_en(facts)}.")
    return capital(f"{subject} {where}.")


def detail_en(facts: Facts, entry: Entry, rng: Rng) -> str:
    """Two to four sentences."""
    it, has, stands = (
        ("They", "have", "lie" if facts.lies else "stand")
        if entry.plural
        else ("It", "has", "lies" if facts.lies else "stands")
    )
    opening = pick(rng, ("This is", "The picture shows"))
    sentences = [f"{opening} {subject_en(facts, entry)}."]
    if facts.kind == "part":
        sentences.append(f"{it} {'belong' if entry.plural else 'belongs'} to {mention_en(_whole(facts))}.")
        sentences.append(f"{it} {'are' if entry.plural else 'is'} {entry.definition[EN]}.")
        return " ".join(sentences)
    if facts.kind == "region":
        if facts.carries:
            verb = "stands" if len(facts.carries) == 1 else "stand"
            sentences.append(
                f"{capital(_listed(EN, [mention_en(one) for one in facts.carries]))} {verb} on it."
            )
        sentences.append(f"It is {entry.definition[EN]}.")
        return " ".join(sentences)
    beside = beside_en(facts)
    sentences.append(f"{it} {stands} {place_en(facts)}{', ' + beside if beside else ''}.")
    if facts.size:
        more, plain, _ = SIZES[facts.size]
        be, kind = ("are", "their kind") if entry.plural else ("is", "its kind")
        sentences.append(pick(rng, (f"{it} {be} {more} than usual.", f"{it} {be} {plain} for {kind}.")))
    others = [
        (part, colour) for part, colour in facts.parts if not (facts.handle_colour and part == "handle")
    ]
    if others:
        listed = [a_noun(ontology().entries[part], adjectives_en(colour, "")) for part, colour in others]
        sentences.append(f"{it} {has} {_listed(EN, listed)}.")
    if facts.cut_off:
        sentences.append("The edge of the picture cuts " + ("them" if entry.plural else "it") + " off.")
    return " ".join(sentences)


# -- Chinese ---------------------------------------------------------------------------------


@lru_cache(maxsize=1024)
def adjectives_zh(colour: str, material: str) -> str:
    """ "红色的塑料" before a noun."""
    known = ontology()
    shade = f"{known.word('colours', colour, ZH)}的" if colour else ""
    stuff = known.word("materials", material, ZH) if material else ""
    return f"{stuff}的{shade}" if stuff and material in OPINION_FIRST else f"{shade}{stuff}"


def one_zh(entry: Entry, adjectives: str = "", noun: str = "") -> str:
    """ "一个红色的马克杯"."""
    return f"一{entry.measure_word}{adjectives}{noun or entry.label(ZH)}"


def mention_zh(what: Mention) -> str:
    """ "一个蓝色的马克杯"."""
    return one_zh(ontology().entries[what.category], adjectives_zh(what.colour, ""))


def subject_zh(facts: Facts, entry: Entry, noun: str = "") -> str:
    """ "一把红色的搪瓷水壶", "一把黄柄的锤子", "一张木质的桌子"."""
    known = ontology()
    if facts.kind == "region":
        word = (
            known.word("surfaces", facts.surface, ZH)
            if facts.surface
            else known.word("colours", facts.colour, ZH)
            if facts.colour
            else ""
        )
        return one_zh(entry, f"{word}的" if word else "", noun)
    if facts.handle_colour:
        return one_zh(entry, f"{known.word('colours', facts.handle_colour, ZH).removesuffix('色')}柄的", noun)
    return one_zh(entry, adjectives_zh(facts.colour, facts.material), noun)


def place_zh(facts: Facts, surface: bool = True) -> str:
    """ "放在木质的桌子上"."""
    place, family = facts.place
    word = ontology().word("surfaces", family, ZH) + "的" if surface and family else ""
    return f"放在{word}{ontology().entries[place].label(ZH)}上"


def beside_zh(facts: Facts) -> str:
    """ "在一个马克杯的左边"."""
    return f"在{mention_zh(facts.neighbour)}的{RELATIONS[facts.relation][1]}" if facts.neighbour else ""


def _here_zh(facts: Facts, entry: Entry, function: str, rng: Rng) -> str:
    if facts.kind == "part":
        return f"这里它属于{mention_zh(_whole(facts))}。"
    if facts.kind == "region":
        if facts.carries:
            return f"这里它上面放着{_listed(ZH, [mention_zh(one) for one in facts.carries])}。"
        return pick(rng, ("这里它是场景的背景。", "这里它属于背景。"))
    for pair in ontology().pairs:
        near = facts.neighbour.category if facts.neighbour else ""
        if pair.first == facts.category and pair.second in (near, facts.place[0]):
            where = place_zh(facts, False) if pair.second == facts.place[0] else beside_zh(facts)
            return f"这里它{where}，{pair.text[ZH]}。"
    where = place_zh(facts, False)
    if facts.neighbour and rng.random() < 0.4:
        where += f"，{beside_zh(facts)}"
    purpose = (
        f"以后需要时可以{function}"
        if facts.place[0] == "shelf"
        else pick(rng, (f"随时可以{function}", f"方便{function}"))
    )
    return f"这里它{where}，{purpose}。"


def explain_zh(facts: Facts, entry: Entry, rng: Rng) -> str:
    """Label, definition and function, then its function in this scene."""
    function = pick(rng, ontology().functions[entry.function].chinese)
    use = pick(rng, (f"用来{function}", f"可以{function}", f"主要用于{function}"))
    return f"{entry.label(ZH)}是{entry.definition[ZH]}，{use}。{_here_zh(facts, entry, function, rng)}"


def brief_zh(facts: Facts, entry: Entry, rng: Rng) -> str:
    """One sentence."""
    noun = pick(rng, entry.names[ZH]) if rng.random() < 0.12 else ""
    subject = subject_zh(facts, entry, noun)
    if facts.kind == "part":
        return (
            f"{adjectives_zh(facts.colour, '')}{noun or entry.label(ZH)}，属于{mention_zh(_whole(facts))}。"
        )
    if facts.kind == "region":
        return (
            f"{subject}，上面放着{_listed(ZH, [mention_zh(one) for one in facts.carries])}。"
            if facts.carries
            else f"{subject}，位于背景中。"
        )
    where = place_zh(facts, rng.random() < 0.5)
    if facts.neighbour and rng.random() < 0.5:
        return f"{subject}{where}，{beside_zh(facts)}。"
    return f"{subject}{where}。"


def detail_zh(facts: Facts, entry: Entry, rng: Rng) -> str:
    """Two to four sentences."""
    sentences = [f"{pick(rng, ('这是', '图中是'))}{subject_zh(facts, entry)}。"]
    if facts.kind == "part":
        return f"{sentences[0]}它属于{mention_zh(_whole(facts))}，是{entry.definition[ZH]}。"
    if facts.kind == "region":
        if facts.carries:
            sentences.append(f"上面放着{_listed(ZH, [mention_zh(one) for one in facts.carries])}。")
        sentences.append(f"它是{entry.definition[ZH]}。")
        return "".join(sentences)
    beside = beside_zh(facts)
    sentences.append(f"它{place_zh(facts)}{'，' + beside if beside else ''}。")
    if facts.size:
        word = SIZES[facts.size][2]
        sentences.append(pick(rng, (f"它比普通的{entry.label(ZH)}{word}。", f"它的尺寸偏{word}。")))
    others = [
        (part, colour) for part, colour in facts.parts if not (facts.handle_colour and part == "handle")
    ]
    if others:
        listed = [one_zh(ontology().entries[part], adjectives_zh(colour, "")) for part, colour in others]
        sentences.append(f"它有{_listed(ZH, listed)}。")
    if facts.cut_off:
        sentences.append("画面边缘截去了它的一部分。")
    return "".join(sentences)


# -- streaming -------------------------------------------------------------------------------


def clip_caption(
    facts: Facts, events: Sequence[str], previous: Sequence[str], language: Language, rng: Rng
) -> str:
    """A caption of a clip that continues the previous caption.

    Args:
        facts: of the object in the video's first frame.
        events: one or two event ids, in order.
        previous: event ids of the previous clip; empty for the first clip.
        language: of the caption.
        rng: chooses the wording.
    """
    entry = ontology().entries[facts.category]
    known = [ontology().events[event] for event in events]
    if language is ZH:
        phrases = [pick(rng, event.chinese) for event in known]
        action = phrases[0] if len(phrases) == 1 else f"{phrases[0]}，然后{phrases[1]}"
        if not previous:
            return f"{adjectives_zh(facts.colour, facts.material)}{entry.label(ZH)}{action}。"
        again = tuple(events) == tuple(previous)
        start = pick(rng, ("仍然", "依旧")) if again else pick(rng, ("接着", "随后", "现在"))
        if again and action.startswith(("仍", "一直", "还")):
            start = ""  # the phrase itself says that it continues
        return f"{entry.label(ZH)}{start}{action}。"
    form = 1 if entry.plural else 0
    phrases = [event.english[int(rng.integers(len(event.english)))][form] for event in known]
    action = " and then ".join(phrases)
    if not previous:
        return f"The {adjectives_en(facts.colour, facts.material)} {entry.noun} {action}.".replace("  ", " ")
    start = (
        pick(rng, ("Still, the", "As before, the"))
        if tuple(events) == tuple(previous)
        else pick(rng, ("Then the", "Next, the", "Now the"))
    )
    return f"{start} {entry.noun} {action}."
