"""Guards on texts: what is looked for, found and replaced, in whole texts and in streams. Nothing here does I/O.

Whoever joins them needs this, from below:

- a `Rule`, from the catalogue (`catalogue.named(["pii", "secrets", "-phone"])`) or of one's own (`rules.pattern`,
  `rules.keywords`, `links.images`, `dangers.dangers`); what cannot be is refused with words (`expression.Refused`, a
  ValueError) when it is made;
- a `patterns.PatternSet` of rules that share one fate, made once with the configuration. `find` and `replace` are for
  whole texts. Rules that mask, that only count, and that reject are three sets: what overlaps within a set is one;
- a `Mask`: what stands in place of a match. A constant, `placeholders.Placeholders.mask` for one that is turned back,
  or one that counts and gives the match back unchanged (flag, shadow). It is asked once for each match, in order, and
  may raise what rejects the text;
- for streams a `window.StreamWindow`, one for each answer: `push(event, (channel, text))` gives the events that may
  leave and which of their texts changed; `finish` a channel, `close` the answer (`whole=False` where it broke off),
  `said` for events that repeat a text. A channel of JSON is opened with `json=True`. `Overfull` is a reason to reject;
- turning back is a second window behind the first, over `placeholders.placeholder_patterns()` with the mask
  `Placeholders.value`. Links are to be looked at before it (`links`): a value that is turned back within a picture's
  address would be sent there.

Below them: `folding` (what a text is compared as), `escapes` (what it means, where it has JSON in it), `expression` and
`derive` (patterns as trees, and what could be the beginning of a match), `engine` (RE2, the extra `guard`), `channel`
and `json_text` (one text in pieces), `personal`, `national`, `credentials` and `checksums` (what the catalogue has),
`measure` and `language` (what is no pattern).

Not found are: what is spread over several texts or values, what stands in pictures or sound, and what is encoded
otherwise (Base64).
"""
