/* The protocol of the log for Spin. docs/PROTOCOL.md tells it in words; `python -m tests.model` runs it and its broken
   variants, each by a #define.

   Nodes may claim and write whenever they like: no safety rests on leader_timeout, beacons, or who thinks that he
   leads, so none of that is here. Time is a tick that may come at any moment and ages what is being timed; ages stop
   at what they are compared with, so a node may sleep for ever. A question and its answer are one step where a later
   answer could only make the node more careful; where it matters when a request arrives, its sending, its arrival and
   what is done next are steps of their own. */

#define NODES 2
#ifndef EPOCHS
#define EPOCHS 3        /* what the log may grow to */
#endif
#ifndef LATE_CREATES
#define LATE_CREATES 1  /* creates that arrive long after they were given up */
#endif
#ifndef LATE_MARKERS
#define LATE_MARKERS 1  /* PUTs of .last_retained that do, while their leader sticks or is gone */
#endif
#ifndef RESTARTS
#define RESTARTS 1      /* of all nodes together, with an empty disk */
#endif

#define VALIDITY 2      /* ticks: fence_validity */
#ifdef NO_STANDING
#define STANDING 0
#else
#define STANDING 2      /* ticks: STANDING_SECONDS; when it is over, no fence of before holds any more, and just so */
#endif

#define ROOT 15
#define max(a, b) (a > b -> a : b)

/* The invariants. Each is false: a name for what is asserted beside it. */
bit AckedIsDurable, RefusedNeverAppears, AbsentMeansHead, ReadersSeeDurable, ChainUnbroken,
    MarkerBeforeDeletion, RetainedIsRestorable;
#define invariant(name, holds) assert(name || (holds))

/* The store. Content is told apart by its writer: a node in one of its lives writes one body to one key. */
byte wal[EPOCHS + 2];       /* what NNN.wal holds; 0: absent */
byte previous[EPOCHS + 2];  /* of which content it says that it is the successor */
byte marker;                /* .last_retained */
byte late_epoch, late_body, late_previous, late_creates = LATE_CREATES;
byte late_marker, late_markers = LATE_MARKERS; /* the marker plus one, and 0: none */
byte restarts = RESTARTS;

/* What only an onlooker knows. */
byte first[EPOCHS + 2];     /* what was created first at each epoch: the log, deleted or not */
byte head;                  /* the newest of these */
byte raised;                /* the most that .last_retained ever was; the snapshot of this epoch exists */
#define is_lowered (marker < raised) /* by a PUT that was late, until the next pass sets it right */

/* Ages in ticks: of `_confirmed_at` and `asked_at` of each Log, and of the marker, as the leader saw it stand. */
byte confirmed[NODES], asked[NODES], standing;

inline create(epoch, content, after) {
    if
    :: wal[epoch] == 0 ->
        wal[epoch] = content;
        previous[epoch] = after;
        if
        :: first[epoch] == 0 ->
            invariant(ChainUnbroken, after == first[epoch - 1]);
            first[epoch] = content;
            head = epoch
        :: else -> printf("  (an orphan: the true epoch %d has been deleted)\n", epoch)
        fi
    :: else
    fi
}

#ifdef NO_FENCE
#define is_confirmed true
#else
#define is_confirmed (confirmed[me] < VALIDITY)
#endif
#ifdef FORGETS_LISTED
#define fence_holds is_confirmed
#else
#define fence_holds (is_confirmed && listed <= at)
#endif
#define mine (1 + 2 * me + life)
#define may_be_first (me == 0 || head > 0) /* the nodes are alike: call him 0 who creates the first epoch of all */

proctype Node(byte me) {
    byte at = 0, hash = ROOT;   /* Log._position */
    byte listed = 0;            /* Log._listed: the newest epoch that a listing has shown */
    bit life = 0, writing = 0, sent = 0;
    byte found = 0;

idle:
    atomic {
        found = 0; writing = 0; sent = 0; asked[me] = VALIDITY;
        listed = (listed > at -> listed : 0);
        if
        :: goto look
        :: at < EPOCHS -> writing = 1; goto append
        :: head > at -> /* Follower._apply_offered: Log.advance lets it inherit what was confirmed */
            at++; hash = first[at];
            printf("node %d is fed epoch %d\n", me, at);
            goto idle
        :: restarts > 0 && life == 0 -> restarts--; life = 1; printf("node %d restarts\n", me); goto restore
        fi;

look: /* Log.next, Log.is_head */
        if
        :: !is_confirmed -> goto survey
        :: is_confirmed && wal[at + 1] == 0 && !fence_holds -> confirmed[me] = VALIDITY; goto survey
        :: is_confirmed && wal[at + 1] == 0 && fence_holds ->
            printf("node %d at %d: nothing follows, so this is the head\n", me, at);
            invariant(AbsentMeansHead, head == at);
            confirmed[me] = 0;
            goto idle
        :: is_confirmed && wal[at + 1] != 0 && previous[at + 1] != hash -> goto restore /* check_follows: CorruptLog */
        :: is_confirmed && wal[at + 1] != 0 && previous[at + 1] == hash -> /* Log.advance */
            at++; hash = wal[at];
            printf("node %d reads epoch %d\n", me, at);
            /* Except, when the marker was lowered, for an orphan that somebody has sent a whole retention ago: the next link tells. */
            invariant(ReadersSeeDurable, hash == first[at] || late_markers < LATE_MARKERS);
#ifdef READING_CONFIRMS
            confirmed[me] = 0;
#endif
            goto idle
        fi
    }

append: /* Log.append: a claim, a write, or a release */
    atomic {
        if
        :: fence_holds ->
#ifdef CONFIRMS_AGAIN
            asked[me] = 0;
#endif
            asked[me] = (sent -> asked[me] : 0); /* when these bytes were first sent, or the head last surveyed */
            printf("node %d sends epoch %d\n", me, at + 1)
        :: else -> goto survey
        fi
    }
    atomic { /* the request arrives: Log._send, once._attempt */
        sent = 1;
        if
        :: may_be_first && wal[at + 1] == 0 -> /* Created */
            create(at + 1, mine, hash);
            printf("node %d's epoch %d is created\n", me, at + 1);
#ifdef FORGETS_CONFIRMATION
            if
            :: asked[me] < VALIDITY -> goto appended
            :: else -> goto survey
            fi
#else
            if
            :: fence_holds -> goto appended
            :: else -> goto survey
            fi
#endif
        :: may_be_first && wal[at + 1] == 0 -> /* Exists: it was sent twice on the way */
            create(at + 1, mine, hash);
            printf("node %d's epoch %d is created, and said to exist\n", me, at + 1)
        :: wal[at + 1] != 0 -> printf("node %d's epoch %d is said to exist\n", me, at + 1)
        :: may_be_first -> create(at + 1, mine, hash); /* Unknown: the answer is lost */
            printf("node %d's epoch %d has arrived, and its answer is lost\n", me, at + 1);
            goto unknown
        :: printf("node %d's epoch %d is lost\n", me, at + 1);
            goto unknown
        :: late_creates > 0 ->
            late_creates--; late_epoch = at + 1; late_body = mine; late_previous = hash;
            printf("node %d's epoch %d will arrive much later\n", me, at + 1);
            goto unknown
        fi
    }
    atomic { /* once._read_back */
        found = wal[at + 1];
#ifdef NO_READ_BACK
        goto lost;
#endif
        if
#ifdef THEIRS_IS_FINAL
        :: found != 0 && found != mine -> goto lost
#else
        :: found != 0 && found != mine && fence_holds -> goto lost
        :: found != 0 && found != mine && !fence_holds -> goto survey
#endif
        :: found == mine && fence_holds -> goto appended
        :: found == mine && !fence_holds -> goto survey
        :: found == 0 -> goto unknown
        fi
    }
unknown:
    atomic {
        found = 0;
        if
#ifdef UNKNOWN_IS_FAILURE
        :: wal[at + 1] == mine -> goto appended
        :: wal[at + 1] != mine -> goto lost
#else
        :: goto survey /* Log._fate */
        :: fence_holds -> goto append /* put_if_absent: the same bytes again */
        :: restarts > 0 && life == 0 -> restarts--; life = 1; printf("node %d restarts\n", me); goto restore
#endif
        fi
    }

survey: /* Log._survey_after, for all of the above */
    atomic { found = marker; asked[me] = 0 }
    atomic {
        if
        :: asked[me] >= VALIDITY -> goto survey
        :: else
        fi;
        if
        :: found > at + 1 -> goto gone
        :: else
        fi;
        found = EPOCHS;
        do
        :: found > at && wal[found] == 0 -> found--
        :: else -> break
        od;
        if
        :: found == at ->
            printf("node %d at %d: the listing ends here\n", me, at);
            invariant(AbsentMeansHead, head == at);
            confirmed[me] = asked[me];
            found = 0;
            if
            :: writing -> goto append
            :: else -> goto idle
            fi
#ifndef NO_GAP_CHECK
        :: found > at + 1 && (wal[at + 1] == 0 || wal[at + 2] == 0) -> goto gone
#endif
        :: else ->
            printf("node %d at %d: the listing goes on to %d\n", me, at, found);
            confirmed[me] = asked[me];
            listed = found;
            if
            :: writing
            :: else -> goto idle
            fi
        fi
    }
    atomic { /* Log._fate: whose is it? */
        found = wal[at + 1];
#ifndef TRUSTS_A_LATE_ANSWER
        if
        :: !is_confirmed -> goto survey
        :: else
        fi;
#endif
        if
        :: found == 0 && sent -> goto doubt
        :: found == 0 && !sent -> goto lost
        :: found != 0 && found != mine -> goto lost
        :: found == mine && listed == at + 1 -> goto appended
        :: found == mine && listed > at + 1
        fi
    }
    atomic { /* and did the log go on from it? */
        if
        :: !is_confirmed -> goto survey
        :: is_confirmed && wal[at + 2] == 0 -> goto doubt
        :: is_confirmed && wal[at + 2] != 0 && previous[at + 2] == mine -> goto appended
        :: is_confirmed && wal[at + 2] != 0 && previous[at + 2] != mine -> goto lost
        fi
    }

gone:
    atomic {
        printf("node %d at %d: the log behind this is gone\n", me, at);
        if
        :: !writing -> goto restore
#ifdef GONE_IS_LOST
        :: writing -> goto lost
#else
        :: writing && sent -> goto doubt
        :: writing && !sent -> goto lost
#endif
        fi
    }
doubt: /* OutcomeUnknown, for ever */
    atomic { printf("node %d does not know what became of epoch %d\n", me, at + 1); goto restore }

appended:
    atomic {
        at++; hash = mine;
        printf("node %d acknowledges epoch %d\n", me, at);
        invariant(AckedIsDurable, first[at] == mine);
        confirmed[me] = asked[me];
        goto idle
    }
lost: /* Fenced: not written, and never will be */
    atomic {
        printf("node %d is fenced: epoch %d is not written\n", me, at + 1);
        invariant(RefusedNeverAppears, first[at + 1] != 0 && first[at + 1] != mine);
        goto idle
    }
restore: /* restore.restore: the newest snapshot, and the epochs listed after it */
    atomic {
        at = raised; hash = first[at]; listed = 0;
        do
        :: at < EPOCHS && wal[at + 1] != 0 && previous[at + 1] == hash -> at++; hash = wal[at]
        :: else -> break
        od;
        printf("node %d restores at %d\n", me, at);
        invariant(ReadersSeeDurable, at == head && hash == first[at]);
        confirmed[me] = 0;
        goto idle
    }
}

proctype Retention() { /* roles/retention.py, on one leader after the other */
    byte own = 0;               /* Retention._marker; `standing` is its `_standing_since` */
    byte each = 0;
pass:
    atomic {
        if
        :: own != 0 && marker != raised -> own = 0; standing = 0; printf("another leader takes retention over\n"); goto pass
        :: late_markers > 0 && marker < raised + 1 -> /* _assert_marker, cut in two by a leader that stands still */
            late_markers--; late_marker = 1 + max(marker, own); own = 0; standing = 0;
            printf("a leader is about to write .last_retained = %d, and stands still\n", late_marker - 1);
            goto pass
        :: marker != own -> /* _assert_marker */
            own = max(marker, own); marker = own; standing = 0;
            goto pass
        :: marker == own && standing >= STANDING
        fi
    }
    atomic { /* the listing shows what it may: how old something is the store's clock says, so it may be anything */
        if
        :: own == raised && own > 1 && wal[1] != 0 -> goto delete
        :: own == raised && own > 2 && wal[2] != 0 -> goto delete
        :: own == raised && own > 3 && wal[3] != 0 -> goto delete
        :: head > own && head >= raised -> each = max(own + 1, raised)
        :: goto pass
        fi;
        do
        :: each < head -> each++
        :: break
        od;
#ifdef DELETES_FIRST
        own = each; goto delete
#endif
        marker = each; own = each; standing = 0;
        raised = each;
        each = 0;
        printf(".last_retained is raised to %d\n", marker);
        goto pass
    }
delete: /* oldest first; one after the other, and maybe not all */
    atomic {
        each = 1;
        do
        :: each < own && wal[each] == 0 -> each++
        :: else -> break
        od;
        if
        :: each < own ->
            wal[each] = 0; previous[each] = 0;
            printf("epoch %d is deleted\n", each);
            invariant(MarkerBeforeDeletion, marker >= own || is_lowered);
            each = head;
            do
            :: each > raised && wal[each] == first[each] -> each--
            :: else -> break
            od;
            invariant(RetainedIsRestorable, each == raised);
            each = 0;
            goto delete
        :: each = 0; goto pass
        fi
    }
}

proctype Late() { /* what was sent long ago, and given up */
    do
    :: atomic { late_epoch != 0 && (late_body < 3 || head > 0) ->
        printf("the late create of epoch %d arrives\n", late_epoch);
        create(late_epoch, late_body, late_previous);
        late_epoch = 0; late_body = 0; late_previous = 0 }
    :: atomic { late_marker != 0 ->
        marker = late_marker - 1; late_marker = 0;
        printf("the late PUT sets .last_retained to %d\n", marker) }
    od
}

#define older(age, limit) (age < limit -> age + 1 : limit)

proctype Time() {
    byte node = 0;
    do
    :: atomic {
        confirmed[0] < VALIDITY || asked[0] < VALIDITY || confirmed[1] < VALIDITY || asked[1] < VALIDITY ||
            standing < STANDING;
        do
        :: node < NODES ->
            confirmed[node] = older(confirmed[node], VALIDITY); asked[node] = older(asked[node], VALIDITY); node++
        :: else -> break
        od;
        standing = older(standing, STANDING);
        node = 0;
        printf("time passes\n") }
    od
}

init {
    byte node = 0;
    atomic {
        first[0] = ROOT;
        do
        :: node < NODES -> run Node(node); node++
        :: else -> break
        od;
        run Retention(); run Late(); run Time()
    }
}
