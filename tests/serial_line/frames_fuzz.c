/* What the tests ask of edge_frames.h besides the simulator: `decode` says what becomes of each frame on stdin, `encode
 * TYPE SESSION SEQUENCE` makes one, `corrupt N SEED` sends N corrupted commands to a link and says how many were acted
 * upon, `watchdog` when motors stop, `refuse` whom it does not listen to, `sizes` the layout. */
#include <stdio.h>
#include <stdlib.h>

#include "edge_frames.h"

#define SCHEMA 0x1122334455667788u
#define DIM 6u
#define SESSION 77u

static uint64_t random_state;

/* xorshift64* (Vigna 2016). */
static uint32_t draw(uint32_t below) {
  random_state ^= random_state >> 12;
  random_state ^= random_state << 25;
  random_state ^= random_state >> 27;
  return (uint32_t)(((random_state * 0x2545F4914F6CDD1Du) >> 32) % below);
}

static int decode(void) {
  static edge_decoder decoder;
  edge_frame frame;
  for (int byte; (byte = getchar()) != EOF;) {
    const edge_result result = edge_decode(&decoder, (uint8_t)byte, &frame);
    if (result == EDGE_NOTHING) continue;
    printf("%d", (int)result);
    if (result == EDGE_ACCEPTED) {
      printf(" %u %lu %lu ", frame.type, (unsigned long)frame.session, (unsigned long)frame.sequence);
      for (uint16_t i = 0; i < frame.length; i++) printf("%02x", frame.payload[i]);
    }
    printf("\n");
  }
  return 0;
}

/* The frame of a type, session and sequence number whose payload is on stdin. */
static int encode(char **words) {
  static uint8_t payload[EDGE_MAX_PAYLOAD], wire[EDGE_MAX_WIRE];
  const size_t length = fread(payload, 1, sizeof payload, stdin);
  const size_t count = edge_encode((uint8_t)atoi(words[0]), (uint32_t)strtoul(words[1], NULL, 0),
                                   (uint32_t)strtoul(words[2], NULL, 0), payload, (uint16_t)length, wire);
  return fwrite(wire, 1, count, stdout) == count ? 0 : 1;
}

/* The only action that a command of this sequence number may carry. */
static float expected(uint32_t sequence, uint32_t i) {
  return (float)((sequence * 2654435761u + i * 40503u) % 1000003u) / 7.0f;
}

static size_t command(uint32_t sequence, uint32_t now_ms, uint8_t *wire) {
  uint8_t payload[EDGE_COMMAND_BYTES + 4 * DIM];
  edge_put32(payload, now_ms + 50);
  for (uint32_t i = 0; i < DIM; i++) {
    const float value = expected(sequence, i);
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    edge_put32(payload + 4 + 4 * i, bits);
  }
  return edge_encode(EDGE_COMMAND, SESSION, sequence, payload, sizeof payload, wire);
}

/* Damages wire[0..count), whose ends are delimiters, and returns its new length. Room for as much again. */
static size_t damage(uint8_t *wire, size_t count, const uint8_t *other, size_t others) {
  const size_t at = 1 + draw((uint32_t)count - 2), left = count - at;
  size_t n;
  switch (draw(10)) {
    case 0: /* flipped bits */
      for (n = 1 + draw(8); n; n--) wire[1 + draw((uint32_t)count - 2)] ^= (uint8_t)(1u << draw(8));
      return count;
    case 1:
      wire[at] ^= (uint8_t)(1 + draw(255));
      return count; /* another byte */
    case 2:         /* a burst of noise */
      for (n = at; n < count - 1 && n < at + 16; n++) wire[n] = (uint8_t)draw(256);
      return count;
    case 3:
      memmove(wire + at, wire + at + 1, left - 1);
      return count - 1; /* a lost byte */
    case 4:
      memmove(wire + at + 1, wire + at, left);
      return count + 1; /* a doubled one */
    case 5:
      memmove(wire + at + 1, wire + at, left);
      wire[at] = (uint8_t)draw(256);
      return count + 1;
    case 6:
      n = wire[at];
      wire[at] = wire[count - 2];
      wire[count - 2] = (uint8_t)n;
      return count; /* reordered */
    case 7:
      return at; /* cut off; what comes next has a delimiter of its own */
    case 8:      /* the beginning of one and the end of another */
      n = 1 + draw((uint32_t)(others < count ? others : count) - 2);
      memcpy(wire + n, other + n, others - n);
      return others;
    default: /* all noise */
      for (n = 0; n < count; n++) wire[n] = (uint8_t)draw(256);
      return count;
  }
}

static size_t hello(uint8_t *wire) {
  uint8_t payload[EDGE_HELLO_BYTES];
  edge_put64(payload, SCHEMA);
  edge_put16(payload + 8, 100);
  edge_put16(payload + 10, DIM);
  edge_put16(payload + 12, DIM);
  return edge_encode(EDGE_HELLO, SESSION, 1, payload, sizeof payload, wire);
}

static uint32_t wrong, acted;

/* Whether what moves the motors is what was sent with that number, and newer than what moved them before. */
static void receive(edge_link *link, const uint8_t *wire, size_t count, uint32_t now_ms) {
  for (size_t i = 0; i < count; i++) {
    const uint32_t commands = link->commands, received = link->received;
    edge_link_receive(link, wire[i], now_ms);
    if (link->commands == commands) continue;
    int right = link->received - received - 1u < EDGE_SEQUENCE_WINDOW;
    for (uint32_t j = 0; j < DIM; j++) right &= link->action[j] == expected(link->received, j);
    acted++;
    wrong += !right;
  }
}

/* Whether `frame`, whose ends are delimiters, is somewhere in wire[0..count) and the delimiter that follows: then it is
 * what was sent, though something around it was damaged. */
static int holds(uint8_t *wire, size_t count, const uint8_t *frame, size_t length) {
  wire[count++] = 0;
  for (size_t at = 0; at + length <= count; at++)
    if (memcmp(wire + at, frame, length) == 0) return 1;
  return 0;
}

static int corrupt(uint32_t count, uint64_t seed) {
  static edge_link link;
  static uint8_t wire[2 * EDGE_MAX_WIRE], other[EDGE_MAX_WIRE], whole[EDGE_MAX_WIRE];
  uint32_t sequence = 1, damaged = 0, good = 0, taken = 0;
  size_t others = 0;
  random_state = seed;
  edge_link_start(&link, SCHEMA, DIM, DIM, 100);
  receive(&link, wire, hello(wire), 0);
  while (damaged < count) {
    const uint32_t now_ms = sequence / 4;
    const size_t bytes = command(++sequence, now_ms, whole);
    if (sequence % 16 == 0) { /* a good one now and then, and then a duplicate and an old one */
      const uint32_t before = acted;
      receive(&link, whole, bytes, now_ms);
      taken += acted - before;
      good++;
      receive(&link, whole, bytes, now_ms);
      receive(&link, other, others, now_ms);
    } else if (others) {
      memcpy(wire, whole, bytes);
      const size_t left = damage(wire, bytes, other, others);
      if (!holds(wire, left, whole, bytes) && !holds(wire, left, other, others)) {
        receive(&link, wire, left, now_ms);
        damaged++;
      }
    }
    memcpy(other, whole, others = bytes);
  }
  printf("{\"damaged\": %lu, \"good\": %lu, \"taken\": %lu, \"acted\": %lu, \"wrong\": %lu, \"results\": [",
         (unsigned long)damaged, (unsigned long)good, (unsigned long)taken, (unsigned long)acted, (unsigned long)wrong);
  for (int i = 0; i < EDGE_RESULTS; i++) printf("%s%lu", i ? ", " : "", (unsigned long)link.results[i]);
  printf("]}\n");
  return 0;
}

/* What becomes of the robot's own frames, on a line that returns them. */
static void echo(edge_link *link) {
  static const float values[DIM] = {0};
  uint8_t wires[3][EDGE_MAX_WIRE];
  const size_t counts[3] = {edge_link_reply(link, 1, wires[0]), edge_link_observation(link, 2, values, wires[1]),
                            edge_link_heartbeat(link, 3, wires[2])};
  for (int i = 0; i < 3; i++) {
    edge_result result = EDGE_NOTHING;
    for (size_t at = 0; at < counts[i]; at++) result = edge_link_receive(link, wires[i][at], 3);
    printf("%d %lu\n", (int)result, (unsigned long)link->valid_at_ms);
  }
}

/* What becomes of a hello for this robot, for one with another schema, with another action and with another
 * observation. */
static int refuse(void) {
  uint8_t wire[EDGE_MAX_WIRE];
  for (uint16_t i = 0; i < 4; i++) {
    static edge_link link;
    edge_result result = EDGE_NOTHING;
    edge_link_start(&link, i == 1 ? SCHEMA ^ 1 : SCHEMA, i == 2 ? DIM + 1 : DIM, i == 3 ? DIM + 1 : DIM, 100);
    const size_t count = hello(wire);
    for (size_t at = 0; at < count; at++) result = edge_link_receive(&link, wire[at], 0);
    printf("%d %lu %d\n", (int)result, (unsigned long)link.session, (int)link.fault);
    if (i == 0) echo(&link);
  }
  return 0;
}

/* By a clock of our own: the last millisecond at which the motors may turn, after a heartbeat, and after a command. */
static int watchdog(void) {
  static const uint32_t starts[] = {0, 1000, 0xFFFFFFF0u, 0xFFFFFF9Bu};
  uint8_t wire[EDGE_MAX_WIRE];
  for (size_t i = 0; i < sizeof starts / sizeof *starts; i++) {
    for (uint32_t ttl_ms = 50; ttl_ms <= 950; ttl_ms += 900) {
      static edge_link link;
      const uint32_t start = starts[i], timeout_ms = ttl_ms < 100 ? ttl_ms : 100;
      edge_link_start(&link, SCHEMA, DIM, DIM, 100);
      receive(&link, wire, hello(wire), start);
      receive(&link, wire, command(2, start + ttl_ms - 50, wire), start);
      uint32_t ms = 0;
      while (edge_link_action(&link, start + ms)) ms++;
      printf("%lu %lu %d\n", (unsigned long)timeout_ms, (unsigned long)ms, (int)link.state);
    }
  }
  return 0;
}

#define SAY(name) printf("%s\"%s\": %lu", first ? "{" : ", ", #name, (unsigned long)(name)), first = 0

static int sizes(void) {
  int first = 1;
  SAY(EDGE_PROTOCOL_VERSION), SAY(EDGE_HEADER_BYTES), SAY(EDGE_CRC_BYTES), SAY(EDGE_MAX_PAYLOAD), SAY(EDGE_MAX_ENCODED);
  SAY(EDGE_SEQUENCE_WINDOW), SAY(EDGE_MAX_TTL_MS);
  SAY(EDGE_HELLO), SAY(EDGE_WELCOME), SAY(EDGE_HEARTBEAT), SAY(EDGE_COMMAND), SAY(EDGE_OBSERVATION), SAY(EDGE_STOP);
  SAY(EDGE_ESTOP), SAY(EDGE_FAULT), SAY(EDGE_ALIVE);
  SAY(EDGE_HELLO_BYTES), SAY(EDGE_WELCOME_BYTES), SAY(EDGE_HEARTBEAT_BYTES), SAY(EDGE_COMMAND_BYTES);
  SAY(EDGE_OBSERVATION_BYTES), SAY(EDGE_STOP_BYTES), SAY(EDGE_ESTOP_BYTES), SAY(EDGE_FAULT_BYTES),
      SAY(EDGE_ALIVE_BYTES);
  SAY(EDGE_FAULT_SCHEMA), SAY(EDGE_FAULT_DIMENSION), SAY(EDGE_FAULT_TIMEOUT);
  SAY(EDGE_ACCEPTED), SAY(EDGE_TOO_LONG), SAY(EDGE_BAD_COBS), SAY(EDGE_TOO_SHORT), SAY(EDGE_BAD_CRC);
  SAY(EDGE_BAD_VERSION), SAY(EDGE_BAD_LENGTH), SAY(EDGE_BAD_TYPE), SAY(EDGE_BAD_PAYLOAD), SAY(EDGE_BAD_SESSION);
  SAY(EDGE_DUPLICATE), SAY(EDGE_OLD), SAY(EDGE_AHEAD), SAY(EDGE_EXPIRED), SAY(EDGE_BAD_VALUE), SAY(EDGE_DIRECTION);
  SAY(EDGE_LATCHED), SAY(EDGE_REFUSED), SAY(EDGE_WAITING), SAY(EDGE_STOPPED), SAY(EDGE_RUNNING), SAY(EDGE_EMERGENCY);
  printf("}\n");
  return 0;
}

int main(int count, char **words) {
  if (count == 2 && strcmp(words[1], "decode") == 0) return decode();
  if (count == 2 && strcmp(words[1], "refuse") == 0) return refuse();
  if (count == 2 && strcmp(words[1], "watchdog") == 0) return watchdog();
  if (count == 2 && strcmp(words[1], "sizes") == 0) return sizes();
  if (count == 4 && strcmp(words[1], "corrupt") == 0)
    return corrupt((uint32_t)strtoul(words[2], NULL, 0), strtoull(words[3], NULL, 0));
  if (count == 5 && strcmp(words[1], "encode") == 0) return encode(words + 2);
  return 2;
}
