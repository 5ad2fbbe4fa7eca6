/* Threads that work on one kernel at a time.

   A kernel's work lies in items, which whoever has time takes one after the other. So nobody waits
   for a helper that the system does not let run: what it has not begun the others do, and the
   caller waits but for the item that it has in hand. Where even that takes long, because another
   program wants the processor, one helper less is asked for a while.

   There is one team, whoever calls: a caller that finds it at work for another works alone. */

#define _GNU_SOURCE
#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "kernels.h"

enum {
    MOST = 256,          /* threads */
    SPINS = 2000,        /* of a helper before it sleeps: some 50 microseconds */
    LONG_SPINS = 100000, /* a few milliseconds */
    LATE = 100000,       /* nanoseconds beside some items' time: the helper has lost its processor */
    SLICE = 4000000,     /* and what it counts as at most, of a machine that stood still for once */
    CREDIT = 4 * SLICE,  /* nanoseconds of waiting for late helpers that are forgiven */
    TRIAL = SLICE,       /* of these when one is tried again */
    SHORTEST = 40000000, /* nanoseconds until that, doubled where it fails */
    LONGEST = 1280000000
};

static struct {
    pthread_mutex_t turn; /* whose work it is */
    int helpers;
    long credit;          /* grows by some of the time with help, shrinks by what is waited */
    int spared;           /* helpers that are not asked */
    long pause, until;    /* nanoseconds: how long not to ask one, and when that ends */

    _Alignas(64) _Atomic unsigned calls; /* grows with each; what sleepers wait for */
    _Atomic int asked;                   /* threads; helpers that are not asked wait for another */
    _Atomic int spins;
    _Atomic int sleeping;
    _Atomic int open;                    /* whether there are items; what follows holds while it is */
    work *each;
    const void *what;
    long items;
    int threads;
    _Alignas(64) _Atomic long next;      /* the first item that nobody has taken */
    _Alignas(64) _Atomic int inside;     /* helpers that may have an item in hand */
} team = {.turn = PTHREAD_MUTEX_INITIALIZER, .credit = CREDIT, .spins = SPINS};

static long now(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

/* How many it was. */
static long take(int thread)
{
    for (long taken = 0;; taken++) {
        long item = atomic_fetch_add_explicit(&team.next, 1, memory_order_relaxed);
        if (item >= team.items)
            return taken;
        team.each(team.what, item, thread);
    }
}

static void doze(void *word, unsigned seen)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0);
}

static void wake(void *word)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, MOST, NULL, NULL, 0);
}

/* A helper says that it is there before it looks whether it may be, and a caller changes nothing
   before it has heard that nobody is. */
static void *help(void *number)
{
    int thread = (int)(intptr_t)number;
    for (unsigned seen = 0;;) {
        int asked = atomic_load(&team.asked);
        if (thread >= asked) {
            doze(&team.asked, asked);
            continue;
        }
        for (int i = 0, most = atomic_load(&team.spins); i < most && atomic_load(&team.calls) == seen; i++)
            _mm_pause();
        if (atomic_load(&team.calls) == seen) {
            atomic_fetch_add(&team.sleeping, 1);
            doze(&team.calls, seen);
            atomic_fetch_sub(&team.sleeping, 1);
            continue;
        }
        seen = atomic_load(&team.calls);
        atomic_fetch_add(&team.inside, 1);
        if (atomic_load(&team.open) && thread < team.threads)
            take(thread);
        atomic_fetch_sub(&team.inside, 1);
    }
    return NULL;
}

/* A forked process has none of them. */
static void forget(void)
{
    pthread_mutex_init(&team.turn, NULL);
    team.helpers = team.spared = 0;
    team.credit = CREDIT;
    atomic_store(&team.asked, 0);
    atomic_store(&team.sleeping, 0);
    atomic_store(&team.open, 0);
    atomic_store(&team.inside, 0);
}

/* As many helpers as can be had, but no more. */
static void hire(int helpers)
{
    static int told;
    if (!told++)
        pthread_atfork(NULL, NULL, forget);
    sigset_t all, before;
    sigfillset(&all); /* signals are the caller's business */
    pthread_sigmask(SIG_SETMASK, &all, &before);
    while (team.helpers < helpers && team.helpers < MOST - 1) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, help, (void *)(intptr_t)(team.helpers + 1)))
            break;
        pthread_detach(thread);
        team.helpers++;
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
}

/* How many shall work: fewer than could where helpers have been late, and at times one more. */
static int asked(int threads)
{
    if (team.spared && now() >= team.until) {
        team.spared--;
        team.until = now() + team.pause;
        team.credit = team.credit < TRIAL ? team.credit : TRIAL;
    }
    return threads > team.spared ? threads - team.spared : 1;
}

/* Wait for those inside. began: when the caller began on its items; taken: how many it took.

   Where waiting for late helpers takes more than an eighth of the time that they take part in, which
   is well below what one is worth, there is one too many. */
static void part(long began, long taken)
{
    long done = now(), end = done, item = taken ? (done - began) / taken : 0;
    while (atomic_load(&team.inside)) {
        _mm_pause();
        end = now();
    }
    long late = end - done > LATE + 4 * item ? end - done : 0;
    team.credit += (done - began) / 8 - (late < SLICE ? late : SLICE);
    if (team.credit > CREDIT) {
        team.credit = CREDIT;
        team.pause = team.spared ? team.pause : 0;
    }
    if (team.credit < 0) {
        team.spared += team.spared < team.helpers;
        team.pause = !team.pause ? SHORTEST : team.pause < LONGEST ? 2 * team.pause : LONGEST;
        team.until = end + team.pause;
        team.credit = TRIAL;
    }
}

void stay(void) { atomic_store(&team.spins, LONG_SPINS); }

void together(work *each, const void *what, long items, int threads)
{
    int mine = threads > 1 && items > 1 && !pthread_mutex_trylock(&team.turn);
    threads = mine ? asked(threads) : 1;
    if (threads == 1) {
        if (mine)
            pthread_mutex_unlock(&team.turn);
        for (long item = 0; item < items; item++)
            each(what, item, 0);
        return;
    }
    hire(threads - 1);
    team.each = each, team.what = what, team.items = items, team.threads = threads;
    if (atomic_exchange(&team.asked, threads) < threads)
        wake(&team.asked);
    atomic_store(&team.next, 0);
    atomic_store(&team.open, 1);
    atomic_fetch_add(&team.calls, 1);
    if (atomic_load(&team.sleeping))
        wake(&team.calls);
    long began = now(), taken = take(0);
    atomic_store(&team.open, 0);
    part(began, taken);
    pthread_mutex_unlock(&team.turn);
}
