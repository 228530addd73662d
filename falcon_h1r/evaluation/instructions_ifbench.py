"""The instructions of IFBench (Pyatkin et al., arXiv 2507.02833), as far as a rule of ours decides them.

Written anew from what each instruction says. Left undecided, as they take a trained tagger, a dictionary of syllables,
or another's list of words: words:start_verb, words:odd_even_syllables, format:emoji, ratio:stop_words and
ratio:overlap (whose band of two percent hangs on the tokenizer). `instructions_text.sentences` divides sentences.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from itertools import pairwise

from falcon_h1r.evaluation.instructions_ifbench_tasks import RULES as TASK_RULES
from falcon_h1r.evaluation.instructions_text import (
    Given,
    Rule,
    bare_words,
    count_word,
    ends_with,
    filled_lines,
    sentences,
    stripped,
    tokens,
    words,
)

CONJUNCTIONS = set("and but for nor or so yet".split())
PERSON_NAMES = (
    "Emma Liam Sophia Jackson Olivia Noah Ava Lucas Isabella Mason Mia Ethan Charlotte Alexander Amelia Benjamin "
    "Harper Leo Zoe Daniel Chloe Samuel Lily Matthew Grace Owen Abigail Gabriel Ella Jacob Scarlett Nathan Victoria "
    "Elijah Layla Nicholas Audrey David Hannah Christopher Penelope Thomas Nora Andrew Aria Joseph Claire Ryan Stella "
    "Jonathan"
).split()
PRONOUNS = set(
    "i me we us you he him she her it they them my mine our ours your yours his hers its their theirs myself ourselves "
    "yourself yourselves himself herself itself themselves this that these those who whom whose which what whoever "
    "whomever whatever whichever anybody anyone anything everybody everyone everything nobody nothing somebody someone "
    "something each either neither both all some any none".split()
)
KEYWORD_COUNTS = {"keyword1": 1, "keyword2": 2, "keyword3": 3, "keyword4": 5, "keyword5": 7}
_CLUSTER = re.compile(r"[bcdfghjklmnpqrstvwxyz]{2}")
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
_CLOSED_BY = {")": "(", "]": "[", "}": "{"}


# -----------------------------------------------------------------------------
# Counts and ratios


def word_count_range(text: str, given: Given) -> bool:
    return bool(given["min_words"] <= len(words(text)) <= given["max_words"])


def unique_words(text: str, given: Given) -> bool:
    return len({word.strip(string.punctuation) for word in text.lower().split()}) >= given["N"]


def conjunctions(text: str, given: Given) -> bool:
    return len({stripped(word).lower() for word in text.split()} & CONJUNCTIONS) >= given["small_n"]


def person_names(text: str, given: Given) -> bool:
    return len(set(words(text)) & set(PERSON_NAMES)) >= given["N"]


def pronouns(text: str, given: Given) -> bool:
    return sum(word in PRONOUNS for word in tokens(text.lower().replace("/", " "))) >= given["N"]


def numbers(text: str, given: Given) -> bool:
    """Exactly so many runs of digits; a point or comma within a number does not divide it."""
    bare = text.translate(str.maketrans("", "", string.punctuation))
    return len(re.findall(r"\d+", bare)) == given["N"]


def punctuation(text: str, given: Given) -> bool:
    """Each of . , ! ? ; : beside an interrobang."""
    for interrobang in ("?!", "!?", "‽"):
        if interrobang in text:
            return set(".,!?;:") <= set(text.replace(interrobang, "", 1))
    return False


def keywords_multiple(text: str, given: Given) -> bool:
    return all(count_word(given[name], text) == count for name, count in KEYWORD_COUNTS.items())


def japanese_words(text: str, given: Given) -> bool:
    """Every N-th word has Japanese characters, unless it is a number."""
    every = [stripped(word) for word in text.split()][int(given["N"]) - 1 :: int(given["N"])]
    return all(_JAPANESE.search(word) for word in every if word and not word.isdigit())


def sentence_type(text: str, given: Given) -> bool:
    """Twice as many statements as questions."""
    found = sentences(text)
    return sum(ends_with(one, ".") for one in found) == 2 * sum(ends_with(one, "?") for one in found)


def sentence_balance(text: str, given: Given) -> bool:
    found = sentences(text)
    return len({sum(ends_with(one, mark) for one in found) for mark in ".?!"}) == 1


def equal_sentences(text: str, given: Given) -> bool:
    """Three sentences, equally long in characters, no word twice."""
    found = sentences(text)
    every = bare_words(" ".join(found))
    return len(found) == 3 and len(set(map(len, found))) == 1 and len(every) == len(set(every))


# -----------------------------------------------------------------------------
# Words and sentences


def alphabet(text: str, given: Given) -> bool:
    """Each word begins with the letter that follows the one before, z before a."""
    letters = [word[0] for word in bare_words(text)]
    if not letters or letters[0] not in string.ascii_lowercase:
        return False
    first = string.ascii_lowercase.index(letters[0])
    return all(letter == string.ascii_lowercase[(first + place) % 26] for place, letter in enumerate(letters))


def three_vowels(text: str, given: Given) -> bool:
    return "\n" not in text.strip() and len(set(text.lower()) & set("aeiou")) <= 3


def prime_lengths(text: str, given: Given) -> bool:
    def is_prime(number: int) -> bool:
        return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))

    return all(is_prime(length) for length in set(map(len, bare_words(text))))


def palindromes(text: str, given: Given) -> bool:
    return sum(word == word[::-1] and len(word) >= 5 for word in bare_words(text)) >= 10


def repeats(text: str, given: Given) -> bool:
    return max(Counter(bare_words(text)).values(), default=0) <= given["small_n"]


def no_consecutive(text: str, given: Given) -> bool:
    return all(one[0] != other[0] for one, other in pairwise(bare_words(text)))


def last_first(text: str, given: Given) -> bool:
    """The last word of a sentence is the first of the next."""
    divided = [tokens(sentence.lower()) for sentence in sentences(text)]
    return all(one and other and one[-1] == other[0] for one, other in pairwise(divided))


def paragraph_last_first(text: str, given: Given) -> bool:
    divided = [stripped(line.lower()).split() for line in filled_lines(text)]
    return all(line[0] == line[-1] for line in divided if line)


def alliteration_increment(text: str, given: Given) -> bool:
    """Each sentence has more words in alliteration with a neighbour than the one before."""
    longest = -1
    for sentence in sentences(text):
        initials = [bare[0] for word in sentence.lower().split() if (bare := word.lstrip(string.punctuation))]
        alike = [one == other for one, other in pairwise(initials)]
        count = sum(alike) + sum(alike[place] and not (place and alike[place - 1]) for place in range(len(alike)))
        if count <= longest:
            return False
        longest = count
    return True


def sentence_increment(text: str, given: Given) -> bool:
    lengths = [len(bare_words(sentence)) for sentence in sentences(text)]
    return bool(lengths) and all(other == one + given["small_n"] for one, other in pairwise(lengths))


def sentence_keyword(text: str, given: Given) -> bool:
    found, place = sentences(text), int(given["N"])
    return 0 < place <= len(found) and count_word(given["word"], found[place - 1]) > 0


def keyword_position(text: str, given: Given) -> bool:
    found, n, m = sentences(text), int(given["n"]), int(given["m"])
    sentence = tokens(found[n - 1]) if 0 < n <= len(found) else []
    return 0 < m <= len(sentence) and sentence[m - 1].lower() == given["keyword"].strip().lower()


def second_words(text: str, given: Given) -> bool:
    """Second and second to last."""
    every = tokens(text.lower())
    return len(every) > 1 and every[1] == every[-2] == given["keyword"].strip().lower()


# -----------------------------------------------------------------------------
# Formats


def nested_parentheses(text: str, given: Given) -> bool:
    """Five levels deep, and closed from the innermost on; a wrong bracket begins anew."""
    opened: list[str] = []
    deepest = 0
    for character in text:
        if character in "([{":
            opened.append(character)
            deepest = max(deepest, len(opened))
        elif character in _CLOSED_BY:
            if not opened or opened.pop() != _CLOSED_BY[character]:
                opened, deepest = [], 0
            elif deepest >= 5:
                return True
    return False


def nested_quotes(text: str, given: Given) -> bool:
    """Three levels of quotes that take turns, and are closed."""
    opened: list[str] = []
    deepest = 0
    for character in text:
        if opened and character == opened[-1]:
            opened.pop()
            if deepest - len(opened) >= 3:
                return True
        elif character in "\"'":
            opened.append(character)
            deepest = max(deepest, len(opened))
    return False


def one_of_options(text: str, given: Given) -> bool:
    """Nothing but one of the options; of letters (a, b, c), exactly as they are written."""
    options = given["options"]
    separator = "/" if "/" in options else "or" if "or" in options else ","
    choices = [option.strip() for option in options.split(separator)]
    if re.match(r"\W*a\W*b\W*c\W*", options, re.IGNORECASE):
        return text in choices
    return stripped(text).lower() in {stripped(choice).lower() for choice in choices}


def word_a_line(text: str, given: Given) -> bool:
    bare = text.translate(str.maketrans("", "", string.punctuation))
    return len(list(filter(None, bare.strip().split("\n")))) == len(bare.split())


def stairs(text: str, given: Given) -> bool:
    indents = [len(line) - len(line.lstrip(" ")) for line in filled_lines(text)]
    return all(one < other for one, other in pairwise(indents))


def explained_quotes(text: str, given: Given) -> bool:
    """No quote follows another at once, and none is the end."""
    bare = "".join(text.replace("“", '"').replace("”", '"').replace("'\"'", "").split())
    ending = bare.rstrip(string.digits + string.punctuation.replace('"', ""))
    return '""' not in bare and not ending.endswith('"')


def thesis(text: str, given: Given) -> bool:
    """Something in italics of HTML, and something after it."""
    found = re.search(r"<(i|em)>([^<]*)</\1>", text)
    return found is not None and bool(found[2].strip()) and bool(text[found.end() :].strip())


def sub_bullets(text: str, given: Given) -> bool:
    return all("-" in bullet for bullet in text.split("*")[1:])


def sentences_then_bullets(text: str, given: Given) -> bool:
    """Two sentences at least, then two bullets at least, and nothing else."""
    starred = [line.strip().startswith("*") for line in text.split("\n")]
    first = starred.index(True) if True in starred else len(starred)
    before = "\n".join(text.split("\n")[:first])
    return sum(starred) >= 2 and all(starred[first:]) and len(sentences(before)) >= 2


def title_case(text: str, given: Given) -> bool:
    return not any(word[0].islower() and (len(word) == 1 or word[1:].islower()) for word in tokens(text))


def template(text: str, given: Given) -> bool:
    return all(part in text for part in ("My Answer:", "My Conclusion:", "Future Outlook:"))


RULES: dict[str, Rule] = {
    "count:word_count_range": Rule(word_count_range, ("min_words", "max_words")),
    "count:unique_word_count": Rule(unique_words, ("N",)),
    "count:conjunctions": Rule(conjunctions, ("small_n",)),
    "count:person_names": Rule(person_names, ("N",)),
    "count:pronouns": Rule(pronouns, ("N",)),
    "count:numbers": Rule(numbers, ("N",)),
    "count:punctuation": Rule(punctuation),
    "count:keywords_multiple": Rule(keywords_multiple, tuple(KEYWORD_COUNTS)),
    "count:words_japanese": Rule(japanese_words, ("N",)),
    "ratio:sentence_type": Rule(sentence_type),
    "ratio:sentence_balance": Rule(sentence_balance),
    "ratio:sentence_words": Rule(equal_sentences),
    "words:alphabet": Rule(alphabet),
    "words:vowel": Rule(three_vowels),
    "words:consonants": Rule(lambda text, given: all(map(_CLUSTER.search, text.lower().split()))),
    "words:prime_lengths": Rule(prime_lengths),
    "words:palindrome": Rule(palindromes),
    "words:repeats": Rule(repeats, ("small_n",)),
    "words:no_consecutive": Rule(no_consecutive),
    "words:last_first": Rule(last_first),
    "words:paragraph_last_first": Rule(paragraph_last_first),
    "words:keywords_specific_position": Rule(keyword_position, ("keyword", "n", "m")),
    "words:words_position": Rule(second_words, ("keyword",)),
    "sentence:alliteration_increment": Rule(alliteration_increment),
    "sentence:increment": Rule(sentence_increment, ("small_n",)),
    "sentence:keyword": Rule(sentence_keyword, ("word", "N")),
    "format:parentheses": Rule(nested_parentheses),
    "format:quotes": Rule(nested_quotes),
    "format:options": Rule(one_of_options, ("options",)),
    "format:newline": Rule(word_a_line),
    "format:line_indent": Rule(stairs),
    "format:quote_unquote": Rule(explained_quotes),
    "format:list": Rule(lambda text, given: text.count(given["sep"]) >= 2, ("sep",)),
    "format:thesis": Rule(thesis),
    "format:sub-bullets": Rule(sub_bullets),
    "format:no_bullets_bullets": Rule(sentences_then_bullets),
    "format:title_case": Rule(title_case),
    "format:output_template": Rule(template),
    "format:no_whitespace": Rule(lambda text, given: not any(map(str.isspace, text))),
    **TASK_RULES,
}
