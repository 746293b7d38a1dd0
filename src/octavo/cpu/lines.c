/* Lines of JSON (RFC 8259) into columns, for octavo.metrics: what the trainer writes, and nothing else.

   A text with anything that the trainer does not write (an escape, a key twice, a number too large, a type that the
   column has not) is refused whole, and octavo.metrics reads it with pyarrow, which says what is wrong. So all that is
   decided here is how fast a plain file is read. Numbers are rounded once, to the nearest, as pyarrow rounds them. */

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* strtod_l */
#endif
#include <locale.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { INTEGER, NUMBER, PARTS, PART, LOADS }; /* octavo.metrics has the same */
enum { DEEPEST = 8 };                         /* values within values that are not asked for */

typedef struct { int32_t name, length, kind, slot; } Field; /* where its name is, and its column or -1 */

typedef struct {
    const char *names;
    const Field *fields;
    int32_t count;
    int64_t lines, line;
    uint64_t *cells; /* [slots][lines]: int64 or double */
    uint8_t *valid;  /* the same */
    int32_t *outer, *inner, inner_count;
    float *loads;
    int32_t load_count;
    locale_t locale;
} Reader;

typedef struct { const char *text; uint64_t digits; int32_t exponent, few, negative, integer; } Number;

/* Every function that reads gives what is behind, or NULL. The text ends with a newline, which ends every token, so none
   reads further. */

static inline const char *blanks(const char *at)
{
    while (*at == ' ' || *at == '\t')
        at++;
    return at;
}

static inline int is_digit(char one) { return one >= '0' && one <= '9'; }

/* A number of JSON: digits x 10^exponent where there are `few` of them, at most 19; what others are its text says. */
static const char *number(const char *at, Number *out)
{
    uint64_t digits = 0;
    int32_t count = 0, exponent = 0, power = 0, down;
    out->text = at;
    if ((out->negative = *at == '-'))
        at++;
    if (!is_digit(*at) || (*at == '0' && is_digit(at[1])))
        return NULL;
    for (; is_digit(*at); at++, count += digits != 0)
        digits = digits * 10 + (uint64_t)(*at - '0');
    out->integer = *at != '.' && *at != 'e' && *at != 'E';
    if (*at == '.') {
        if (!is_digit(*++at))
            return NULL;
        for (; is_digit(*at) && exponent > -400; at++, exponent--, count += digits != 0)
            digits = digits * 10 + (uint64_t)(*at - '0');
        if (is_digit(*at))
            return NULL;
    }
    if (*at == 'e' || *at == 'E') {
        down = *++at == '-';
        if (*at == '-' || *at == '+')
            at++;
        if (!is_digit(*at))
            return NULL;
        for (; is_digit(*at); at++)
            if ((power = power * 10 + (*at - '0')) > 400)
                return NULL;
        exponent += down ? -power : power;
    }
    out->digits = digits;
    out->exponent = exponent;
    out->few = count <= 19;
    return at;
}

static const uint64_t FIVES[] = {
    1ull, 5ull, 25ull, 125ull, 625ull, 3125ull, 15625ull, 78125ull, 390625ull, 1953125ull, 9765625ull, 48828125ull,
    244140625ull, 1220703125ull, 6103515625ull, 30517578125ull, 152587890625ull, 762939453125ull, 3814697265625ull,
    19073486328125ull, 95367431640625ull, 476837158203125ull, 2384185791015625ull, 11920928955078125ull,
    59604644775390625ull, 298023223876953125ull, 1490116119384765625ull, 7450580596923828125ull,
};
static const double TENS[] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                              1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* digits / 10^tens, digits > 0 and tens <= 27, as bits x 2^power: at least 63 bits, of which the last one stands for all
   that is cut off as well. A conversion of the bits to float or double therefore rounds the quotient, once. */
static uint64_t quotient(uint64_t digits, int32_t tens, int32_t *power)
{
    int32_t up = __builtin_clzll(digits), down = __builtin_clzll(FIVES[tens]);
    uint64_t over = digits << up, under = FIVES[tens] << down;
    unsigned __int128 dividend = (unsigned __int128)over << 63;
    uint64_t bits = (uint64_t)(dividend / under);
    *power = down - up - 63 - tens;
    return bits | (dividend != (unsigned __int128)bits * under);
}

/* 2^power of a normal double. */
static inline double two_to(int32_t power)
{
    uint64_t bits = (uint64_t)(power + 1023) << 52;
    double value;
    memcpy(&value, &bits, 8);
    return value;
}

/* 1 where there is one that is finite. */
static int to_double(const Number *from, const Reader *reader, double *out)
{
    int32_t exponent = from->exponent, power;
    if (!from->few || exponent > 22 || exponent < -27) {
        *out = strtod_l(from->text, NULL, reader->locale);
        return isfinite(*out);
    }
    if (!from->digits)
        *out = 0.0;
    else if (from->digits < 1ull << 53 && exponent >= -22)
        *out = exponent < 0 ? (double)from->digits / TENS[-exponent] : (double)from->digits * TENS[exponent];
    else if (exponent <= 0) {
        uint64_t bits = quotient(from->digits, -exponent, &power);
        *out = (double)bits * two_to(power);
    } else {
        *out = strtod_l(from->text, NULL, reader->locale);
        return isfinite(*out);
    }
    if (from->negative)
        *out = -*out;
    return 1;
}

static int to_float(const Number *from, const Reader *reader, float *out)
{
    int32_t power;
    if (!from->few || from->exponent > 0 || from->exponent < -27) {
        *out = strtof_l(from->text, NULL, reader->locale);
        return isfinite(*out);
    }
    *out = 0.0f;
    if (from->digits) {
        uint64_t bits = quotient(from->digits, -from->exponent, &power);
        *out = (float)((double)(float)bits * two_to(power));
    }
    if (from->negative)
        *out = -*out;
    return 1;
}

/* Behind the quotation mark of a text that is printable ASCII without escapes, from behind its first one. */
static inline const char *plain_text(const char *at)
{
    while (*at != '"')
        if ((unsigned char)*at < ' ' || (unsigned char)*at >= 127 || *at == '\\')
            return NULL;
        else
            at++;
    return at + 1;
}

static inline const char *word(const char *at, const char *expected, size_t length)
{
    for (size_t i = 0; i < length; i++)
        if (at[i] != expected[i]) /* a newline is none of them */
            return NULL;
    return at + length;
}

static const char *skipped(const char *at, int32_t depth)
{
    Number unused;
    char end;
    if (*at == '"')
        return plain_text(at + 1);
    if (*at == 'n')
        return word(at, "null", 4);
    if (*at != '{' && *at != '[')
        return (at = number(at, &unused)) && unused.few && abs(unused.exponent) < 250 ? at : NULL; /* no double else */
    if (depth == DEEPEST)
        return NULL;
    end = *at == '{' ? '}' : ']';
    at = blanks(at + 1);
    if (*at == end)
        return at + 1;
    for (;; at = blanks(at + 1)) {
        if (end == '}') {
            if (*at != '"' || !(at = plain_text(at + 1)) || *(at = blanks(at)) != ':')
                return NULL;
            at = blanks(at + 1);
        }
        if (!(at = skipped(at, depth + 1)))
            return NULL;
        at = blanks(at);
        if (*at == end)
            return at + 1;
        if (*at != ',')
            return NULL;
    }
}

static const char *loads(const char *at, Reader *reader)
{
    Number found;
    if (*at != '[')
        return NULL;
    at = blanks(at + 1);
    for (int32_t lists = 0; *at != ']' || lists; lists++) {
        if (*at != '[')
            return NULL;
        at = blanks(at + 1);
        for (int32_t values = 0; *at != ']' || values; values++) {
            if (!(at = number(at, &found)) || !to_float(&found, reader, &reader->loads[reader->load_count]))
                return NULL;
            reader->load_count++;
            at = blanks(at);
            if (*at == ']')
                break;
            if (*at != ',')
                return NULL;
            at = blanks(at + 1);
        }
        reader->inner[++reader->inner_count] = reader->load_count;
        at = blanks(at + 1);
        if (*at == ']')
            break;
        if (*at != ',')
            return NULL;
        at = blanks(at + 1);
    }
    return at + 1;
}

static const char *object(const char *at, Reader *reader, int32_t from, int32_t to, int32_t kind);

static const char *value(const char *at, Reader *reader, int32_t index)
{
    const Field *field = &reader->fields[index];
    int64_t cell = field->slot * reader->lines + reader->line;
    int32_t parts = index + 1;
    Number found;
    double as_double;
    if (field->slot < 0)
        return skipped(at, 0);
    if (*at == 'n')
        return word(at, "null", 4);
    reader->valid[cell] = 1;
    switch (field->kind) {
    case LOADS:
        return loads(at, reader);
    case PARTS:
        while (parts < reader->count && reader->fields[parts].kind == PART)
            parts++;
        return object(at, reader, index + 1, parts, PART);
    case INTEGER:
        if (!(at = number(at, &found)) || !found.integer || found.negative || !found.few || found.digits > INT64_MAX)
            return NULL;
        reader->cells[cell] = found.digits;
        return at;
    default:
        if (!(at = number(at, &found)) || !to_double(&found, reader, &as_double))
            return NULL;
        memcpy(&reader->cells[cell], &as_double, 8);
        return at;
    }
}

/* An object whose keys are those fields from `from` to `to` that are of the line (kind -1) or parts (kind PART). Parts
   that are not known are refused, keys of the line skipped. */
static const char *object(const char *at, Reader *reader, int32_t from, int32_t to, int32_t kind)
{
    uint64_t seen = 0;
    int32_t next = from;
    if (*at != '{')
        return NULL;
    at = blanks(at + 1);
    if (*at == '}')
        return at + 1;
    for (;; at = blanks(at + 1)) {
        const char *key = at + 1;
        int32_t found = -1;
        size_t length;
        if (*at != '"' || !(at = plain_text(key)))
            return NULL;
        length = (size_t)(at - 1 - key);
        for (int32_t tried = from; tried < to; tried++, next = next + 1 < to ? next + 1 : from) {
            const Field *field = &reader->fields[next];
            if ((size_t)field->length == length && (field->kind == PART) == (kind == PART) &&
                !memcmp(reader->names + field->name, key, length)) {
                found = next;
                next = next + 1 < to ? next + 1 : from; /* the keys of a line are in the order of the line before */
                break;
            }
        }
        if (*(at = blanks(at)) != ':')
            return NULL;
        at = blanks(at + 1);
        if (found >= 0) {
            if (seen >> found & 1)
                return NULL;
            seen |= 1ull << found;
            at = value(at, reader, found);
        } else
            at = kind == PART ? NULL : skipped(at, 0);
        if (!at)
            return NULL;
        at = blanks(at);
        if (*at == '}')
            return at + 1;
        if (*at != ',')
            return NULL;
    }
}

/* `text` [size], whose last byte is the last of its `lines` newlines, into columns; the number of loads, or -1 where it is
   not plain. `fields` [count, 4]: where the name is in `names`, its length, its kind, its column or -1; at most 64. Room:
   `cells` and `valid` (zeros) [columns, lines], `outer` [lines + 1], `inner` and `loads` [size / 2 + 1]. */
int64_t octavo_read_lines(const char *text, int64_t size, int64_t lines, const char *names, const int32_t *fields,
                          int64_t count, void *cells, void *valid, void *outer, void *inner, void *loads)
{
    Reader reader = {names, (const Field *)fields, (int32_t)count, lines, 0, cells, valid, outer, inner, 0, loads, 0, 0};
    const char *at = text, *end = text + size;
    int64_t refused = size < 1 || size > INT32_MAX || count > 64 || end[-1] != '\n';
    if (refused || !(reader.locale = newlocale(LC_ALL_MASK, "C", (locale_t)0)))
        return -1;
    reader.outer[0] = reader.inner[0] = 0;
    while (at < end && !refused) {
        if (reader.line == lines || !(at = object(at, &reader, 0, reader.count, -1)) || *at++ != '\n')
            refused = 1;
        else
            reader.outer[++reader.line] = reader.inner_count;
    }
    freelocale(reader.locale);
    return refused || reader.line != lines ? -1 : reader.load_count;
}
