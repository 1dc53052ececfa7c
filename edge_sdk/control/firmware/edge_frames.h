/* The firmware's side of Edge SDK's serial protocol: frames, sequence numbers, heartbeat. docs/serial.md explains it.
 *
 * One header, so that a firmware takes it by copying one file; C99, no allocation, no dependence on the processor's
 * byte order. A firmware's whole loop is:
 *
 *     while (uart_read(&byte)) edge_link_receive(&link, byte, millis());
 *     const float *action = edge_link_action(&link, millis());
 *     if (action) drive(action); else motors_off();
 *     size_t n = edge_link_reply(&link, millis(), out);            if (n) uart_write(out, n);
 *     n = edge_link_observation(&link, millis(), sensors, out);    if (n) uart_write(out, n);
 *
 * Define before including, where the defaults do not fit: EDGE_MAX_PAYLOAD (the host's must not be larger),
 * EDGE_MAX_ACTION, EDGE_CRC_BITWISE (64 bytes less flash, slower).
 */
#ifndef EDGE_FRAMES_H
#define EDGE_FRAMES_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define EDGE_PROTOCOL_VERSION 1u
#define EDGE_HEADER_BYTES 12u
#define EDGE_CRC_BYTES 4u
#ifndef EDGE_MAX_PAYLOAD
#define EDGE_MAX_PAYLOAD 512u
#endif
#ifndef EDGE_MAX_ACTION
#define EDGE_MAX_ACTION 64u
#endif
#define EDGE_MAX_BODY (EDGE_HEADER_BYTES + EDGE_MAX_PAYLOAD + EDGE_CRC_BYTES)
#define EDGE_MAX_ENCODED (EDGE_MAX_BODY + (EDGE_MAX_BODY + 253u) / 254u)
/* Room for a frame with a delimiter on both sides. */
#define EDGE_MAX_WIRE (EDGE_MAX_ENCODED + 2u)
#define EDGE_SEQUENCE_WINDOW 1024u
#define EDGE_MAX_TTL_MS 1000u

#define EDGE_HELLO 1u
#define EDGE_WELCOME 2u
#define EDGE_HEARTBEAT 3u
#define EDGE_COMMAND 4u
#define EDGE_OBSERVATION 5u
#define EDGE_STOP 6u
#define EDGE_ESTOP 7u
#define EDGE_FAULT 8u
#define EDGE_ALIVE 9u

#define EDGE_HELLO_BYTES 14u
#define EDGE_WELCOME_BYTES 15u
#define EDGE_HEARTBEAT_BYTES 5u
#define EDGE_COMMAND_BYTES 4u     /* and 4 for each action */
#define EDGE_OBSERVATION_BYTES 5u /* and 4 for each observed value */
#define EDGE_STOP_BYTES 0u
#define EDGE_ESTOP_BYTES 0u
#define EDGE_FAULT_BYTES 10u
#define EDGE_ALIVE_BYTES 0u

#define EDGE_FAULT_SCHEMA 1u
#define EDGE_FAULT_DIMENSION 2u
#define EDGE_FAULT_TIMEOUT 3u

typedef char edge_float_has_32_bits[sizeof(float) == 4 ? 1 : -1];

/* What became of a byte, or of the frame that it ended. */
typedef enum {
  EDGE_NOTHING = 0, /* inside a frame */
  EDGE_ACCEPTED = 1,
  EDGE_TOO_LONG = 2,
  EDGE_BAD_COBS = 3,
  EDGE_TOO_SHORT = 4,
  EDGE_BAD_CRC = 5,
  EDGE_BAD_VERSION = 6,
  EDGE_BAD_LENGTH = 7,
  EDGE_BAD_TYPE = 8,
  EDGE_BAD_PAYLOAD = 9,
  EDGE_BAD_SESSION = 10,
  EDGE_DUPLICATE = 11, /* the newest frame again */
  EDGE_OLD = 12,
  EDGE_AHEAD = 13, /* beyond the sequence window */
  EDGE_EXPIRED = 14,
  EDGE_BAD_VALUE = 15, /* not finite, or not as many as the robot has */
  EDGE_DIRECTION = 16, /* a frame that only the other end sends */
  EDGE_LATCHED = 17,   /* a command after an emergency stop */
  EDGE_REFUSED = 18,   /* a hello for another robot */
  EDGE_RESULTS = 19
} edge_result;

typedef enum { EDGE_WAITING = 0, EDGE_STOPPED = 1, EDGE_RUNNING = 2, EDGE_EMERGENCY = 3 } edge_state;

typedef struct {
  uint8_t type;
  uint16_t length;
  uint32_t session;
  uint32_t sequence;
  const uint8_t *payload; /* inside the decoder, until its next byte */
} edge_frame;

/* ---- numbers, little-endian on the wire ---- */

static inline void edge_put16(uint8_t *to, uint16_t value) {
  to[0] = (uint8_t)value;
  to[1] = (uint8_t)(value >> 8);
}

static inline void edge_put32(uint8_t *to, uint32_t value) {
  edge_put16(to, (uint16_t)value);
  edge_put16(to + 2, (uint16_t)(value >> 16));
}

static inline void edge_put64(uint8_t *to, uint64_t value) {
  edge_put32(to, (uint32_t)value);
  edge_put32(to + 4, (uint32_t)(value >> 32));
}

static inline uint16_t edge_get16(const uint8_t *from) { return (uint16_t)(from[0] | (uint16_t)from[1] << 8); }
static inline uint32_t edge_get32(const uint8_t *from) {
  return edge_get16(from) | (uint32_t)edge_get16(from + 2) << 16;
}
static inline uint64_t edge_get64(const uint8_t *from) {
  return edge_get32(from) | (uint64_t)edge_get32(from + 4) << 32;
}

/* CRC-32 of IEEE 802.3: reflected polynomial 0xEDB88320, all ones before and inverted after, as zlib's. */
static inline uint32_t edge_crc32(const uint8_t *bytes, size_t count) {
  uint32_t crc = 0xFFFFFFFFu;
  for (size_t i = 0; i < count; i++) {
    crc ^= bytes[i];
#ifdef EDGE_CRC_BITWISE
    for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
#else
    static const uint32_t table[16] = {0x00000000u, 0x1DB71064u, 0x3B6E20C8u, 0x26D930ACu, 0x76DC4190u, 0x6B6B51F4u,
                                       0x4DB26158u, 0x5005713Cu, 0xEDB88320u, 0xF00F9344u, 0xD6D6A3E8u, 0xCB61B38Cu,
                                       0x9B64C2B0u, 0x86D3D2D4u, 0xA00AE278u, 0xBDBDF21Cu};
    crc = (crc >> 4) ^ table[crc & 15u];
    crc = (crc >> 4) ^ table[crc & 15u];
#endif
  }
  return ~crc;
}

/* ---- encoding ---- */

/* Consistent Overhead Byte Stuffing (Cheshire and Baker 1999), with a delimiter on both sides, into `wire`, which has
 * room for count + (count + 253) / 254 + 2 bytes. Returns the number of bytes. */
static inline size_t edge_stuff(const uint8_t *body, size_t count, uint8_t *wire) {
  size_t code_at = 1, at = 2;
  uint8_t code = 1;
  wire[0] = 0;
  for (size_t i = 0; i < count; i++) {
    if (body[i] != 0) {
      wire[at++] = body[i];
      code++;
    }
    /* A full block says by itself that no zero follows, and another block is begun only if there is more. */
    if (body[i] == 0 || (code == 0xFF && i + 1 < count)) {
      wire[code_at] = code;
      code_at = at++;
      code = 1;
    }
  }
  wire[code_at] = code;
  wire[at++] = 0;
  return at;
}

/* Writes a frame with `length` bytes of payload into `wire` (EDGE_MAX_WIRE bytes). Returns the number of bytes. */
static inline size_t edge_encode(uint8_t type, uint32_t session, uint32_t sequence, const uint8_t *payload,
                                 uint16_t length, uint8_t *wire) {
  uint8_t body[EDGE_MAX_BODY];
  const size_t end = EDGE_HEADER_BYTES + length;
  if (length > EDGE_MAX_PAYLOAD) return 0;
  body[0] = EDGE_PROTOCOL_VERSION;
  body[1] = type;
  edge_put16(body + 2, length);
  edge_put32(body + 4, session);
  edge_put32(body + 8, sequence);
  if (length) memcpy(body + EDGE_HEADER_BYTES, payload, length);
  edge_put32(body + end, edge_crc32(body, end));
  return edge_stuff(body, end + EDGE_CRC_BYTES, wire);
}

/* ---- decoding, byte by byte ---- */

typedef struct {
  uint8_t body[EDGE_MAX_ENCODED];
  size_t count;   /* bytes of body */
  size_t encoded; /* bytes since the delimiter */
  uint8_t left;   /* bytes of this block that are still to come */
  uint8_t code;   /* what began this block */
} edge_decoder;

static inline void edge_decoder_reset(edge_decoder *decoder) { decoder->count = decoder->encoded = decoder->left = 0; }

/* Whether a payload of `length` bytes is one of a known type. */
static inline int edge_payload_fits(uint8_t type, uint16_t length) {
  static const uint8_t fixed[] = {0,
                                  EDGE_HELLO_BYTES,
                                  EDGE_WELCOME_BYTES,
                                  EDGE_HEARTBEAT_BYTES,
                                  EDGE_COMMAND_BYTES,
                                  EDGE_OBSERVATION_BYTES,
                                  EDGE_STOP_BYTES,
                                  EDGE_ESTOP_BYTES,
                                  EDGE_FAULT_BYTES,
                                  EDGE_ALIVE_BYTES};
  if (type == EDGE_COMMAND || type == EDGE_OBSERVATION) return length >= fixed[type] && (length - fixed[type]) % 4 == 0;
  return length == fixed[type];
}

static inline edge_result edge_check(const uint8_t *body, size_t count, edge_frame *frame) {
  if (count < EDGE_HEADER_BYTES + EDGE_CRC_BYTES) return EDGE_TOO_SHORT;
  if (edge_crc32(body, count - EDGE_CRC_BYTES) != edge_get32(body + count - EDGE_CRC_BYTES)) return EDGE_BAD_CRC;
  if (body[0] != EDGE_PROTOCOL_VERSION) return EDGE_BAD_VERSION;
  frame->type = body[1];
  frame->length = edge_get16(body + 2);
  frame->session = edge_get32(body + 4);
  frame->sequence = edge_get32(body + 8);
  frame->payload = body + EDGE_HEADER_BYTES;
  if (frame->length != count - EDGE_HEADER_BYTES - EDGE_CRC_BYTES || frame->length > EDGE_MAX_PAYLOAD)
    return EDGE_BAD_LENGTH;
  if (frame->type == 0 || frame->type > EDGE_ALIVE) return EDGE_BAD_TYPE;
  return edge_payload_fits(frame->type, frame->length) ? EDGE_ACCEPTED : EDGE_BAD_PAYLOAD;
}

/* Takes one byte. EDGE_ACCEPTED: `frame` is a whole and undamaged one; a reason: a frame was dropped. */
static inline edge_result edge_decode(edge_decoder *decoder, uint8_t byte, edge_frame *frame) {
  if (byte == 0) {
    edge_result result = EDGE_NOTHING;
    if (decoder->encoded > EDGE_MAX_ENCODED)
      result = EDGE_TOO_LONG;
    else if (decoder->left)
      result = EDGE_BAD_COBS;
    else if (decoder->encoded)
      result = edge_check(decoder->body, decoder->count, frame);
    edge_decoder_reset(decoder);
    return result;
  }
  if (decoder->encoded > EDGE_MAX_ENCODED) return EDGE_NOTHING; /* too long already: wait for the delimiter */
  if (++decoder->encoded > EDGE_MAX_ENCODED) return EDGE_NOTHING;
  if (decoder->left) {
    decoder->body[decoder->count++] = byte;
    decoder->left--;
  } else {
    /* A block's end stands for a zero, except a full block's and the last one's. */
    if (decoder->encoded > 1 && decoder->code != 0xFF) decoder->body[decoder->count++] = 0;
    decoder->code = byte;
    decoder->left = (uint8_t)(byte - 1);
  }
  return EDGE_NOTHING;
}

/* ---- the robot's end of the link ---- */

typedef struct {
  /* Set by edge_link_start. */
  uint64_t schema_hash;
  uint16_t action_dim, observation_dim, heartbeat_limit_ms;
  /* Read only for the firmware. */
  edge_state state;
  uint16_t heartbeat_timeout_ms; /* the host's or the limit, whichever is less */
  uint32_t session, received, sent;
  uint32_t commands;      /* how many were taken */
  uint32_t valid_at_ms;   /* when the last frame was accepted */
  uint32_t expires_ms;    /* when the action ends */
  uint8_t reply;          /* EDGE_WELCOME or EDGE_FAULT while one is to be sent */
  uint16_t fault;         /* why a hello was refused */
  uint32_t fault_session; /* whose */
  float action[EDGE_MAX_ACTION];
  uint32_t results[EDGE_RESULTS]; /* how often each result came */
  edge_decoder decoder;
} edge_link;

/* `heartbeat_limit_ms`: motors stop after so long without a valid frame, whatever a host asks for. */
static inline void edge_link_start(edge_link *link, uint64_t schema_hash, uint16_t action_dim, uint16_t observation_dim,
                                   uint16_t heartbeat_limit_ms) {
  memset(link, 0, sizeof *link);
  link->schema_hash = schema_hash;
  link->action_dim = action_dim;
  link->observation_dim = observation_dim;
  link->heartbeat_limit_ms = link->heartbeat_timeout_ms = heartbeat_limit_ms;
}

/* Whether a float is neither infinite nor NaN, by its bits: -ffast-math cannot take this away. */
static inline int edge_finite(uint32_t bits) { return (bits & 0x7F800000u) != 0x7F800000u; }

static inline edge_result edge_link_hello(edge_link *link, const edge_frame *frame) {
  const uint16_t timeout_ms = edge_get16(frame->payload + 8);
  link->fault = 0;
  if (edge_get64(frame->payload) != link->schema_hash)
    link->fault = EDGE_FAULT_SCHEMA;
  else if (edge_get16(frame->payload + 10) != link->action_dim || link->action_dim > EDGE_MAX_ACTION ||
           edge_get16(frame->payload + 12) != link->observation_dim)
    link->fault = EDGE_FAULT_DIMENSION;
  else if (timeout_ms == 0)
    link->fault = EDGE_FAULT_TIMEOUT;
  if (link->fault) {
    link->reply = EDGE_FAULT;
    link->fault_session = frame->session;
    return EDGE_REFUSED;
  }
  link->session = frame->session;
  link->sent = 0;
  link->heartbeat_timeout_ms = timeout_ms < link->heartbeat_limit_ms ? timeout_ms : link->heartbeat_limit_ms;
  if (link->state != EDGE_EMERGENCY) link->state = EDGE_STOPPED;
  link->reply = EDGE_WELCOME;
  return EDGE_ACCEPTED;
}

static inline edge_result edge_link_command(edge_link *link, const edge_frame *frame, uint32_t now_ms) {
  const uint32_t expires_ms = edge_get32(frame->payload);
  if (frame->length != EDGE_COMMAND_BYTES + 4u * link->action_dim) return EDGE_BAD_VALUE;
  for (uint16_t i = 0; i < link->action_dim; i++)
    if (!edge_finite(edge_get32(frame->payload + 4 + 4u * i))) return EDGE_BAD_VALUE;
  if (link->state == EDGE_EMERGENCY) return EDGE_LATCHED;
  if (expires_ms - now_ms - 1u >= EDGE_MAX_TTL_MS) return EDGE_EXPIRED; /* now or before, or unreasonably late */
  for (uint16_t i = 0; i < link->action_dim; i++) {
    const uint32_t bits = edge_get32(frame->payload + 4 + 4u * i);
    memcpy(&link->action[i], &bits, sizeof bits);
  }
  link->expires_ms = expires_ms;
  link->commands++;
  link->state = EDGE_RUNNING;
  return EDGE_ACCEPTED;
}

static inline edge_result edge_link_sequence(const edge_link *link, const edge_frame *frame) {
  const uint32_t ahead = frame->sequence - link->received;
  if (ahead == 0) return EDGE_DUPLICATE;
  if (ahead > 0x7FFFFFFFu) return EDGE_OLD;
  return ahead > EDGE_SEQUENCE_WINDOW ? EDGE_AHEAD : EDGE_ACCEPTED;
}

static inline edge_result edge_link_frame(edge_link *link, const edge_frame *frame, uint32_t now_ms) {
  const int same = link->session != 0 && frame->session == link->session;
  edge_result result = EDGE_ACCEPTED;
  if (frame->type == EDGE_WELCOME || frame->type == EDGE_HEARTBEAT || frame->type == EDGE_OBSERVATION ||
      frame->type == EDGE_FAULT)
    return EDGE_DIRECTION; /* also our own, where the line is shorted */
  /* An emergency stop is taken from whoever sends one, also before a hello. */
  if (frame->type == EDGE_ESTOP) link->state = EDGE_EMERGENCY;
  if (!same && frame->type == EDGE_HELLO) {
    result = edge_link_hello(link, frame);
    if (result != EDGE_ACCEPTED) return result;
  } else {
    if (!same) return EDGE_BAD_SESSION;
    result = edge_link_sequence(link, frame);
    if (result != EDGE_ACCEPTED) return result;
    if (frame->type == EDGE_HELLO) link->reply = EDGE_WELCOME; /* the welcome was lost */
  }
  link->received = frame->sequence;
  link->valid_at_ms = now_ms;
  if (frame->type == EDGE_STOP && link->state == EDGE_RUNNING) link->state = EDGE_STOPPED;
  return frame->type == EDGE_COMMAND ? edge_link_command(link, frame, now_ms) : EDGE_ACCEPTED;
}

/* Ends a session whose host was silent for too long: its next frame must be a hello, and until then nothing moves. */
static inline void edge_link_watch(edge_link *link, uint32_t now_ms) {
  if (link->session == 0 || now_ms - link->valid_at_ms < link->heartbeat_timeout_ms) return;
  link->session = 0;
  if (link->state != EDGE_EMERGENCY) link->state = EDGE_WAITING;
}

/* Takes one byte at `now_ms`, a clock that counts milliseconds and wraps. Interrupts must not call it with others. */
static inline edge_result edge_link_receive(edge_link *link, uint8_t byte, uint32_t now_ms) {
  edge_frame frame;
  edge_result result = edge_decode(&link->decoder, byte, &frame);
  edge_link_watch(link, now_ms);
  if (result == EDGE_ACCEPTED) result = edge_link_frame(link, &frame, now_ms);
  if (result != EDGE_NOTHING) link->results[result]++;
  return result;
}

/* The action, (action_dim,), or NULL: the motors must be stopped. Call it at least once a millisecond or so. */
static inline const float *edge_link_action(edge_link *link, uint32_t now_ms) {
  edge_link_watch(link, now_ms);
  if (link->state == EDGE_RUNNING && (int32_t)(now_ms - link->expires_ms) >= 0) link->state = EDGE_STOPPED;
  return link->state == EDGE_RUNNING ? link->action : NULL;
}

/* The robot's own emergency stop, such as a button. Only edge_link_start ends it. */
static inline void edge_link_emergency(edge_link *link) { link->state = EDGE_EMERGENCY; }

/* What is to be answered to a hello. Writes to `wire` (EDGE_MAX_WIRE bytes); 0: nothing. */
static inline size_t edge_link_reply(edge_link *link, uint32_t now_ms, uint8_t *wire) {
  uint8_t payload[EDGE_WELCOME_BYTES];
  const uint8_t reply = link->reply;
  link->reply = 0;
  if (reply == EDGE_FAULT) {
    edge_put16(payload, link->fault);
    edge_put64(payload + 2, link->schema_hash);
    return edge_encode(EDGE_FAULT, link->fault_session, 0, payload, EDGE_FAULT_BYTES, wire);
  }
  if (reply != EDGE_WELCOME) return 0;
  edge_put64(payload, link->schema_hash);
  edge_put16(payload + 8, link->heartbeat_timeout_ms);
  edge_put32(payload + 10, now_ms);
  payload[14] = (uint8_t)link->state;
  return edge_encode(EDGE_WELCOME, link->session, ++link->sent, payload, EDGE_WELCOME_BYTES, wire);
}

/* `values`: (observation_dim,). Sent at the robot's own rate, at least twice per heartbeat timeout, or heartbeats
 * between. Writes to `wire` (EDGE_MAX_WIRE bytes); 0 before a hello. */
static inline size_t edge_link_observation(edge_link *link, uint32_t now_ms, const float *values, uint8_t *wire) {
  uint8_t payload[EDGE_MAX_PAYLOAD];
  const size_t length = EDGE_OBSERVATION_BYTES + 4u * link->observation_dim;
  if (link->session == 0 || length > EDGE_MAX_PAYLOAD) return 0;
  edge_put32(payload, now_ms);
  payload[4] = (uint8_t)link->state;
  for (uint16_t i = 0; i < link->observation_dim; i++) {
    uint32_t bits;
    memcpy(&bits, &values[i], sizeof bits);
    edge_put32(payload + EDGE_OBSERVATION_BYTES + 4u * i, bits);
  }
  return edge_encode(EDGE_OBSERVATION, link->session, ++link->sent, payload, (uint16_t)length, wire);
}

/* As edge_link_observation, for a robot that has nothing to say. */
static inline size_t edge_link_heartbeat(edge_link *link, uint32_t now_ms, uint8_t *wire) {
  uint8_t payload[EDGE_HEARTBEAT_BYTES];
  if (link->session == 0) return 0;
  edge_put32(payload, now_ms);
  payload[4] = (uint8_t)link->state;
  return edge_encode(EDGE_HEARTBEAT, link->session, ++link->sent, payload, EDGE_HEARTBEAT_BYTES, wire);
}

#endif
